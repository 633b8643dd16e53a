// Draws the figures of the page, fills their layers, and lets the checkboxes show and hide what they name.
const data = JSON.parse(document.getElementById("data").textContent)
const named = name => Bokeh.documents.map(page => page.get_model_by_name(name)).filter(model => model != null)

Promise.all(data.drawings.map(item => Bokeh.embed.embed_item(item))).then(() => {
  for (const [name, columns] of Object.entries(data.layers))
    for (const layer of named(name)) layer.data_source.data = columns
  document.body.dataset.drawn = "yes"
})

for (const box of document.querySelectorAll("input[data-shows]"))
  box.addEventListener("change", () => {
    for (const model of box.dataset.shows.split(" ").flatMap(named)) model.visible = box.checked
  })
