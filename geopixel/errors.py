"""The few kinds of error that a caller treats differently. A wrong argument is a plain ValueError, raised at the door with the rule and the value."""


class GeoPixelError(Exception):
    """Base of the kinds below: catch it to tell our refusals from bugs."""


class CatalogError(GeoPixelError):
    """A STAC catalog cannot be reached or is not one. The job stops before anything is written."""


class NoScenesError(GeoPixelError):
    """The search ended well and found nothing; the message says what was searched."""


class ReadError(GeoPixelError):
    """An asset cannot be read. The tile that needed it becomes a failed receipt; the run goes on."""


class CheckpointError(GeoPixelError):
    """Model weights are missing, unknown or do not fit the configuration; the message names the key or the path."""


class StorageError(GeoPixelError):
    """A run folder cannot be reached or written; the message names it and says why."""


class DamagedError(StorageError):
    """A stored file cannot be read: it was torn, or changed since. Made of a folder's address, the path below it, and why."""

    def __init__(self, url: str, path: str, why: str) -> None:
        super().__init__(url, path, why)
        self.path = path

    def __str__(self) -> str:
        url, path, why = self.args
        return f"{path} in {url} is damaged: {why}"


class RunConflictError(GeoPixelError):
    """The output folder holds a run with other settings, or another driver works in it; nothing was changed in it."""


def root_cause(error: BaseException) -> BaseException:
    """What an error goes back to: libraries wrap the reason of another in a general one of theirs."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
