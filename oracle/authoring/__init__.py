"""Tools for those who write rules: formatting, templates, tests of examples, and the schema for editors."""
