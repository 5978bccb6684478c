"""Everything that firnline raises on purpose.

::

    FirnlineError
    ├── InputError                 the caller asked for something that can't be answered
    │   ├── CRSError               unknown or unusable coordinate reference system
    │   ├── BBoxError              a bounding box that is empty, inverted or not finite
    │   ├── GeometryError          not a valid GeoJSON geometry, or one of no area
    │   ├── DatetimeError          not an RFC 3339 instant or interval
    │   ├── FilterError            a filter that is not CQL2, or asks for what is not supported
    │   ├── TokenError             a paging token that this server did not make
    │   ├── TooLargeError          beyond a limit of this installation
    │   ├── NoCoverageError        no cube of the catalog covers the area asked for
    │   │   └── EmptyCatalogError  as there is none yet
    │   └── SourceNotAllowedError  a host or root outside FIRNLINE_ALLOWED_SOURCES
    ├── NotFoundError              no such collection, item, job or file
    ├── ConflictError              the thing is in a state that does not allow this
    ├── ForbiddenError             this caller may not do that
    ├── QuotaError                 this caller has as much under way as it may have
    ├── SourceError                data could not be read from where it lives
    │   ├── SourceUnreachableError connection refused, timeout, 5xx after all retries
    │   │   └── SourceRefusedError a refusal that the next try would meet as well
    │   ├── SourceMissingError     the source answered that this object does not exist
    │   ├── SourceCorruptError     bytes came, and are not what they should be
    │   ├── SourceChangedError     a cube was replaced, or grew, while it was read
    │   └── CatalogError           a catalog that is not a readable FeatureCollection
    ├── StoreError                 the store of subsets is damaged or can't be written
    │   └── StoreUnreachableError  the bucket that it is in does not answer
    ├── DatabaseError              the database can't be reached or is not migrated
    └── JobError                   a job failed for good
        ├── JobLostError           this worker no longer holds the job's lease
        └── JobDismissedError      the job was dismissed while it ran

An outage (:class:`SourceUnreachableError`, :class:`StoreUnreachableError`, :class:`DatabaseError`)
is never an empty result.
The command line exits with 2 on an :class:`InputError` and with 1 on the others;
``firnline.api.errors`` maps each class to its HTTP status.
"""

from __future__ import annotations


class FirnlineError(Exception):
    """Base of all errors raised on purpose; the message is one clear line for people."""


class InputError(FirnlineError, ValueError):
    """The caller asked for something that can't be answered; the message says what is accepted."""


class CRSError(InputError):
    """Unknown or unusable coordinate reference system."""


class BBoxError(InputError):
    """A bounding box that is empty, inverted or not finite."""


class GeometryError(InputError):
    """Not a valid GeoJSON geometry, or one without area."""


class DatetimeError(InputError):
    """Not an RFC 3339 instant or interval."""


class FilterError(InputError):
    """A filter that is not CQL2, or asks for what is not supported."""


class TokenError(InputError):
    """A paging token that this server did not make."""


class TooLargeError(InputError):
    """A request beyond a limit of this installation."""


class NoCoverageError(InputError):
    """No cube of the catalog covers the area asked for."""


class EmptyCatalogError(NoCoverageError):
    """The catalog has not been harvested yet."""


class SourceNotAllowedError(InputError):
    """A host or root that is not in ``FIRNLINE_ALLOWED_SOURCES``."""


class NotFoundError(FirnlineError, LookupError):
    """No such collection, item, job or file."""


class ConflictError(FirnlineError):
    """The thing is in a state that does not allow this."""


class ForbiddenError(FirnlineError):
    """This caller may not do that."""


class QuotaError(FirnlineError):
    """This caller has as much under way as it may have."""


class SourceError(FirnlineError):
    """Data could not be read from where it lives."""


class SourceUnreachableError(SourceError):
    """The source did not answer: refused, timed out, or 5xx after all retries."""


class SourceRefusedError(SourceUnreachableError):
    """The source refuses, as by 403 or a certificate: to try again is no use."""


class SourceMissingError(SourceError):
    """The source answered that this object does not exist."""


class SourceCorruptError(SourceError):
    """Bytes came, and are not what they should be."""


class SourceChangedError(SourceError):
    """A cube was replaced, or grew, while it was read: what was read of it is of two states."""


class CatalogError(SourceError):
    """A catalog that is not a readable GeoJSON FeatureCollection."""


class StoreError(FirnlineError):
    """The store of subsets is damaged or can't be written."""


class StoreUnreachableError(StoreError):
    """The bucket that subsets are stored in did not answer: refused, timed out, or 5xx."""


class DatabaseError(FirnlineError):
    """The database can't be reached or its schema is not migrated."""


class JobError(FirnlineError):
    """A job failed for good."""


class JobLostError(JobError):
    """This worker no longer holds the job's lease."""


class JobDismissedError(JobError):
    """The job was dismissed while it ran."""
