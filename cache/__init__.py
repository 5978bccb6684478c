"""The local cache: from a request for an area and a period to one published subset."""
