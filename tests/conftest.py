"""What all tests share, one plugin each."""

pytest_plugins = (
    "tests.support.environment",
    "tests.support.fixtures",
    "tests.support.needs",
    "tests.support.rooms",
    "tests.support.projects",
    "tests.support.nodes",
    "tests.support.scans",
    "tests.support.site",
    "tests.support.told",
)
