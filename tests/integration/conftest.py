"""The team's servers, for the whole session; tests are skipped where they cannot start."""

from collections.abc import Iterator

import pytest
from team_servers import CannotStart, Servers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """PostgreSQL, S3, MLflow and Prefect."""
    servers = Servers(tmp_path_factory.mktemp("servers"))
    try:
        servers.start_all()
    except CannotStart as reason:
        pytest.skip(reason=str(reason))
    else:
        yield servers
    finally:
        servers.stop_all()
