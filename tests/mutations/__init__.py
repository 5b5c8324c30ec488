"""Guards of the project, each taken away in a copy: the test that is named with it must fail then."""
