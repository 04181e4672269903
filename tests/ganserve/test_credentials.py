import datetime as dt
import logging
import shutil
import time
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from prometheus_client import CollectorRegistry

from ganserve.errors import StartupError
from ganserve.metrics import Metrics
from ganserve.security.credentials import ReloadedFiles, ServerCertificate, Tokens, parse_tokens
from tests.ganserve.certificates import AROUND, Authority

TOKEN, OTHER = "correct-horse-battery-staple", "another.token~with/marks+123="
DAY = 24 * 60 * 60


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def rewrite(file, old, new):
    file.write_bytes(file.read_bytes().replace(old, new))


class Vanishing(type(Path())):
    """A file that is gone at the fourth look: start and renewal take two each."""

    looks = 0

    def read_bytes(self):
        self.looks += 1
        if self.looks == 4:
            self.unlink()
        return super().read_bytes()


class Replaced(type(Path())):
    """A file before whose next look something may happen to it."""

    def before(self):
        """Nothing happens."""

    def read_bytes(self):
        before, self.before = self.before, lambda: None
        before()
        return super().read_bytes()


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


def refused(metrics, credential):
    return sample(metrics, "ganserve_credential_files_refused", credential=credential)


class TestCertificates:
    def test_their_expiry_is_shown(self, authority, metrics):
        ServerCertificate(*authority.issue(days=30), authority.ca, metrics)
        for certificate, days in (("server", 30), ("client_ca", 3650)):
            expiry = sample(
                metrics, "ganserve_certificate_expiry_timestamp_seconds", certificate=certificate
            )
            assert abs(expiry - time.time() - days * DAY) < 60

    def test_of_several_authorities_the_first_to_expire_is_shown(
        self, authority, metrics, tmp_path
    ):
        both = tmp_path / "both.pem"
        other = Authority(tmp_path / "other", "other", days=60)
        both.write_bytes(authority.ca.read_bytes() + other.ca.read_bytes())
        ServerCertificate(*authority.issue(), both, metrics)
        expiry = sample(
            metrics, "ganserve_certificate_expiry_timestamp_seconds", certificate="client_ca"
        )
        assert abs(expiry - time.time() - 60 * DAY) < 60

    def test_without_a_certificate_no_expiry_is_shown(self, metrics):
        text = [family.samples for family in metrics.registry.collect()]
        assert not any("expiry" in sample.name for samples in text for sample in samples)

    def test_a_new_one_is_taken_over(self, authority, metrics, caplog):
        caplog.set_level(logging.INFO, "ganserve")
        certificate = ServerCertificate(*authority.issue(days=30), None, metrics)
        certificate.refresh()
        assert reloads(metrics, "certificate") == (0, 0)
        authority.issue(days=60)
        certificate.refresh()
        certificate.refresh()
        assert reloads(metrics, "certificate") == (1, 0)
        expiry = sample(
            metrics, "ganserve_certificate_expiry_timestamp_seconds", certificate="server"
        )
        assert abs(expiry - time.time() - 60 * DAY) < 60
        assert caplog.text.count("the certificates were read anew") == 1

    def test_each_port_gets_a_new_one_once_when_handshakes_that_have_begun_are_over(
        self, authority, metrics, monkeypatch
    ):
        ports = []
        monkeypatch.setattr(
            grpc, "dynamic_ssl_server_credentials", lambda _, fetch, **__: ports.append(fetch)
        )
        certificate = ServerCertificate(*authority.issue(), None, metrics)
        for _ in range(2):
            certificate.make_credentials()
        assert [fetch() for fetch in ports] == [None, None]
        authority.issue(days=60)
        certificate.refresh()
        began = time.monotonic()
        newest = ports[0]()
        assert newest is not None
        assert time.monotonic() - began >= 0.05
        assert [fetch() for fetch in ports] == [None, newest]

    @pytest.mark.parametrize("around", AROUND)
    def test_what_stands_around_a_new_one_is_no_matter(self, authority, metrics, around):
        files = [*authority.issue(), authority.ca]
        certificate = ServerCertificate(*files, metrics)
        authority.issue()
        for file in files:
            file.write_bytes(around + file.read_bytes())
        certificate.refresh()
        assert reloads(metrics, "certificate") == (1, 0)

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
            pytest.param(
                lambda a: rewrite(a.issue()[0], b" CERT", b" TRUSTED CERT"),
                "tls_certificate: expected BEGIN CERTIFICATE, got BEGIN TRUSTED",
                id="a form of OpenSSL's",
            ),
            pytest.param(
                lambda a: a.issue(key=ed25519.Ed25519PrivateKey.generate()),
                "expected a key of the kind RSA, P-256 or P-384, got Ed25519",
                id="Ed25519",
            ),
            pytest.param(
                lambda a: a.issue(key=ec.generate_private_key(ec.SECP521R1())),
                "expected a key of the kind RSA, P-256 or P-384, got P-521",
                id="P-521",
            ),
            pytest.param(lambda a: a.ca.write_text("rubbish"), "tls_client_ca: exp", id="bad CA"),
            pytest.param(
                lambda a: a.ca.write_bytes(a.ca.read_bytes() + a.ca.read_bytes()[:-40]),
                "tls_client_ca: expected certificates as PEM, got BAD_END_LINE",
                id="a CA cut off",
            ),
            pytest.param(
                lambda a: rewrite(a.ca, b"\nMII", "\nMIIü".encode()),
                "tls_client_ca: expected certificates as PEM",
                id="a CA with strange letters",
            ),
            pytest.param(
                lambda a: rewrite(a.ca, b" CERT", b" TRUSTED CERT"),
                "tls_client_ca: expected BEGIN CERTIFICATE, got BEGIN TRUSTED",
                id="a CA in a form of OpenSSL's",
            ),
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
        assert reloads(metrics, "certificate") == (0, 1)
        assert refused(metrics, "certificate") == 1
        (record,) = caplog.records  # one line a change, not one a look
        assert "the certificates before stay in use" in record.message
        assert message in record.message
        with pytest.raises(StartupError, match=message):
            ServerCertificate(*files, authority.ca, metrics)

    def test_one_that_vanishes_while_it_is_read_leaves_the_one_before_in_use(
        self, authority, metrics, caplog
    ):
        file, key = authority.issue()
        certificate = ServerCertificate(file, Vanishing(key), None, metrics)
        before = certificate._files.value
        authority.issue()
        certificate.refresh()
        assert certificate._files.value is before
        assert reloads(metrics, "certificate") == (0, 1)
        assert "No such file" in caplog.text
        assert not key.exists()

    def test_those_that_are_replaced_together_while_they_are_read_are_no_mistake(
        self, authority, metrics, tmp_path, caplog
    ):
        """As Kubernetes replaces them: a link to the folder of all is swapped."""
        newest = tmp_path / "newest"

        def swap(days):
            folder = tmp_path / str(days)
            folder.mkdir()
            for file in authority.issue(days=days):
                shutil.copy(file, folder)
            link = tmp_path / "link"
            link.symlink_to(folder)
            link.replace(newest)

        swap(30)
        key = Replaced(newest / "server.key")
        certificate = ServerCertificate(newest / "server.crt", key, None, metrics)
        swap(60)
        key.before = lambda: swap(90)
        certificate.refresh()
        assert reloads(metrics, "certificate") == (1, 0)
        assert "stay in use" not in caplog.text
        expiry = sample(
            metrics, "ganserve_certificate_expiry_timestamp_seconds", certificate="server"
        )
        assert abs(expiry - time.time() - 90 * DAY) < 60

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

    def test_one_that_is_not_valid_yet_is_taken_over_once_it_is(self, authority, metrics, caplog):
        certificate = ServerCertificate(*authority.issue(), None, metrics)
        before = certificate._files.value
        authority.issue(not_before=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=3))
        end = time.monotonic() + 20
        while certificate._files.value is before and time.monotonic() < end:
            certificate.refresh()
            time.sleep(0.05)  # the clock that makes it valid is OpenSSL's own
        assert certificate._files.value is not before
        assert reloads(metrics, "certificate") == (1, 1)
        assert caplog.text.count("certificate is not yet valid") == 1


def test_an_unforeseen_failure_leaves_the_value_before_in_use_until_it_is_over(tmp_path, caplog):
    file, outcomes, divisors = tmp_path / "numbers", [], {b"5": 5, b"4": 0}
    file.write_text("5")
    numbers = ReloadedFiles(
        "numbers", {"number": file}, lambda text: 10 / divisors[text], outcomes.append
    )
    file.write_text("4")
    numbers.refresh()
    numbers.refresh()
    assert numbers.value == 2
    assert outcomes == ["failure"]
    assert "the numbers before stay in use" in caplog.text
    assert caplog.text.count("ZeroDivisionError") == 1  # in full, for it is ours to mend
    divisors[b"4"] = 4
    numbers.refresh()
    numbers.refresh()
    assert numbers.value == 2.5
    assert outcomes == ["failure", "success"]


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
        assert reloads(metrics, "tokens") == (1, 0)

    def test_a_broken_file_leaves_the_tokens_before_in_use(self, file, metrics, caplog):
        tokens = Tokens(file, metrics)
        for content in ("short\n", "", "# none\n"):
            file.write_text(content)
            tokens.refresh()
        file.unlink()
        tokens.refresh()
        assert tokens.identify(f"Bearer {TOKEN}") is not None
        assert reloads(metrics, "tokens") == (0, 4)
        assert "No such file" in caplog.text

    def test_a_refusal_shows_from_the_first_one_on_until_the_file_is_right(self, file, metrics):
        file.write_text(f"{TOKEN}\n{OTHER}")
        tokens = Tokens(file, metrics)
        assert (reloads(metrics, "tokens"), refused(metrics, "tokens")) == ((0, 0), 0)
        file.write_text("revoked too much")
        for _ in range(2):
            tokens.refresh()
            assert (reloads(metrics, "tokens"), refused(metrics, "tokens")) == ((0, 1), 1)
        assert tokens.identify(f"Bearer {OTHER}") is not None
        file.write_text(TOKEN)
        tokens.refresh()
        assert (reloads(metrics, "tokens"), refused(metrics, "tokens")) == ((1, 1), 0)
        assert tokens.identify(f"Bearer {OTHER}") is None

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
