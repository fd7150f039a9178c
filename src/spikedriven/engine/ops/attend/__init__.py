"""Query, key and value meet by AND and OR."""
