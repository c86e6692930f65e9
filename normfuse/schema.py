"""The version of everything that normfuse says as JSON.

It grows where a field goes or changes what it means; a new field alone does not raise it.
"""

SCHEMA_VERSION = 1
