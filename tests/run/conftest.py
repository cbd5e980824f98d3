from tests.config.conftest import no_secrets_at_hand, problems, with_aim, without_aim, write  # noqa: F401 -- fixtures
