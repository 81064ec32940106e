"""The one exception the data functions raise about data."""


class DataError(ValueError):
    """Data is missing, damaged or does not fit the request; the message says what, where and what to do."""
