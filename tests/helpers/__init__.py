"""Shared by the tests of several rooms: small models, runs, records, studies of known truth."""
