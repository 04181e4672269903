import logging
import time

import pytest
from prometheus_client import CollectorRegistry

from ganserve.credentials import ServerCertificate, Tokens, parse_tokens
from ganserve.errors import StartupError
from ganserve.metrics import Metrics
from tests.ganserve.certificates import Authority

TOKEN, OTHER = "correct-horse-battery-staple", "another.token~with/marks+123="
DAY = 24 * 60 * 60


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def sample(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def reloads(metrics, credential):
    return tuple(
        sample(
            metrics,
            "ganserve_credential_reloads_total",
            credential=credential,
            outcome=outcome,
        )
        for outcome in ("success", "failure")
    )


class TestCertificates:
    def test_their_expiry_is_shown(self, authority, metrics):
        ServerCertificate(*authority.issue(days=30), authority.ca, metrics)
        for certificate, days in (("server", 30), ("client_ca", 3650)):
            expiry = sample(
                metrics, "ganserve_certificate_expiry_timestamp_seconds", certificate=certificate
            )
            assert abs(expiry - time.time() - days * DAY) < 60

    def test_without_a_certificate_no_expiry_is_shown(self, metrics):
        text = [family.samples for family in metrics.registry.collect()]
        assert not any("expiry" in sample.name for samples in text for sample in samples)

    def test_a_new_one_is_taken_over(self, authority, metrics, caplog):
        caplog.set_level(logging.INFO, "ganserve")
        certificate = ServerCertificate(*authority.issue(days=30), None, metrics)
        certificate.refresh()
        assert reloads(metrics, "certificate") == (None, None)
        authority.issue(days=60)
        certificate.refresh()
        certificate.refresh()
        assert reloads(metrics, "certificate") == (1, None)
        expiry = sample(
            metrics, "ganserve_certificate_expiry_timestamp_seconds", certificate="server"
        )
        assert abs(expiry - time.time() - 60 * DAY) < 60
        assert caplog.text.count("the certificates were read anew") == 1

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            pytest.param(lambda a: a.issue(days=-1), "certificate has expired", id="expired"),
            pytest.param(
                lambda a: a.issue()[1].write_bytes(a.issue("other")[1].read_bytes()),
                "KEY_VALUES_MISMATCH",
                id="another key",
            ),
            pytest.param(lambda a: a.issue()[0].write_text("rubbish"), "expected PEM", id="no PEM"),
            pytest.param(lambda a: a.issue()[0].write_bytes(b""), "expected PEM", id="empty"),
            pytest.param(lambda a: a.issue()[0].unlink(), "No such file", id="missing"),
            pytest.param(lambda a: a.issue(password=b"p"), "without a password", id="password"),
            pytest.param(lambda a: a.ca.write_text("rubbish"), "tls_client_ca: exp", id="bad CA"),
        ],
    )
    def test_a_broken_one_leaves_the_one_before_in_use(
        self, authority, metrics, caplog, spoil, message
    ):
        files = authority.issue()
        certificate = ServerCertificate(*files, authority.ca, metrics)
        before = certificate._files.value
        spoil(authority)
        certificate.refresh()
        certificate.refresh()
        assert certificate._files.value is before
        assert reloads(metrics, "certificate") == (None, 1)
        (record,) = caplog.records  # one line a change, not one a look
        assert "the certificates before stay in use" in record.message
        assert message in record.message
        with pytest.raises(StartupError, match=message):
            ServerCertificate(*files, authority.ca, metrics)

    def test_a_certificate_without_its_new_key_is_taken_over_once_the_key_is_there(
        self, authority, metrics
    ):
        files = authority.issue(days=30)
        certificate = ServerCertificate(*files, None, metrics)
        old_key = files[1].read_bytes()
        authority.issue(days=60)
        new_key = files[1].read_bytes()
        files[1].write_bytes(old_key)
        certificate.refresh()
        files[1].write_bytes(new_key)
        certificate.refresh()
        assert reloads(metrics, "certificate") == (1, 1)


class TestTokens:
    @pytest.fixture
    def file(self, tmp_path):
        file = tmp_path / "tokens"
        file.write_text(f"# the web site\n{TOKEN}\n\n  {OTHER}  \n")
        return file

    def test_each_line_is_one(self, file, metrics):
        tokens = Tokens(file, metrics)
        one, other = (tokens.identify(f"Bearer {token}") for token in (TOKEN, OTHER))
        assert one is not None
        assert other is not None
        assert one != other
        assert tokens.identify(f"bearer  {TOKEN}") == one

    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            TOKEN,
            f"Basic {TOKEN}",
            f"Bearer {TOKEN[:-1]}",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN.upper()}",
            f"Bearer {TOKEN} {OTHER}",
            f"Bearer {TOKEN}\n{OTHER}",
            "Bearer # the web site",
            b"Bearer \xff\x00",
        ],
    )
    def test_nothing_else_is(self, file, metrics, authorization):
        assert Tokens(file, metrics).identify(authorization) is None

    def test_a_changed_file_is_read_anew(self, file, metrics):
        tokens = Tokens(file, metrics)
        file.write_text(OTHER)
        tokens.refresh()
        assert tokens.identify(f"Bearer {TOKEN}") is None
        assert tokens.identify(f"Bearer {OTHER}") is not None
        assert reloads(metrics, "tokens") == (1, None)

    def test_a_broken_file_leaves_the_tokens_before_in_use(self, file, metrics, caplog):
        tokens = Tokens(file, metrics)
        for content in ("short\n", "", "# none\n"):
            file.write_text(content)
            tokens.refresh()
        file.unlink()
        tokens.refresh()
        assert tokens.identify(f"Bearer {TOKEN}") is not None
        assert reloads(metrics, "tokens") == (None, 4)
        assert "No such file" in caplog.text

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            pytest.param(b"", "at least one token, got none", id="empty"),
            pytest.param(f"{TOKEN}\nshort".encode(), "line 2: expected a token of", id="short"),
            pytest.param(b"xylophone quizzical jackdaw", "line 1", id="blanks"),
            pytest.param(f"{TOKEN}\xe9".encode(), "line 1", id="other letters"),
        ],
    )
    def test_a_bad_line_is_named_but_never_shown(self, content, message):
        with pytest.raises(ValueError, match=message) as error:
            parse_tokens(content)
        assert not any(word in str(error.value) for word in content.decode().split())

    def test_no_token_stays_in_memory(self, file, metrics):
        assert TOKEN not in repr(vars(Tokens(file, metrics)._files)["value"])
