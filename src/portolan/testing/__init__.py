"""Contract suites: subclass one in a plug-in's tests to check it against the same rules as the built-ins."""
