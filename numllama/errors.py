"""What can go wrong: each message is one sentence."""


class NumllamaError(Exception):
    """An error that one sentence explains; the command line prints it without a traceback."""


class DeviceError(NumllamaError):
    """The device that was asked for cannot be used here."""


class DataError(NumllamaError):
    """A data file is missing, too short, damaged, or made for another vocabulary."""


class CheckpointError(NumllamaError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing, or is not what was written."""


class TrainingError(NumllamaError):
    """Training cannot go on."""
