"""Who may use a server: the right Host, no foreign Origin, and the token where there is one."""

import socket

import pytest
from serve.served import client, served, small_engine
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from numllama.serve import server
from numllama.serve.access import Access, host_names, is_loopback, resolve_token
from numllama.serve.guard import Guard


def browser(access=None, url="http://127.0.0.1:7860", **options):
    """A client of a server that answers every request that the guard passes on."""

    async def app(scope, receive, send):
        await PlainTextResponse("in")(scope, receive, send)

    return TestClient(Guard(app, access), base_url=url, follow_redirects=False, **options)


LOCAL = ["localhost", "localhost:7860", "127.0.0.1", "127.0.0.1:7860", "[::1]:7860", "LOCALHOST:1"]
FOREIGN = [
    "evil.com", "evil.com:7860", "localhost.evil.com", "127.0.0.1.evil.com", "10.0.0.1", "evil.com@localhost",
    "localhost@evil.com", "", "localhost:x", "[::1", "0.0.0.0", "127.1", "localhost:7860/..", "local host", "2130706433",
    "localhost\x00.evil.com",
]  # fmt: skip


@pytest.mark.parametrize("host", LOCAL)
def test_this_machine_is_asked_for_by_its_names(host):
    assert browser().get("/", headers={"Host": host}).text == "in"


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("listening", ["127.0.0.1", "0.0.0.0", "127.0.0.2", "::"])
def test_another_name_is_refused_whatever_address_the_server_listens_on(host, listening):
    response = browser(Access(host_names(listening))).get("/", headers={"Host": host.encode()})
    expected = 200 if listening == host else 403
    assert response.status_code in (expected, 400)
    if expected != 200:
        assert response.json()["error"]["message"].count("\n") == 0


def test_a_request_has_one_host():
    two = browser().get("/", headers=[("Host", "localhost"), ("Host", "evil.com")])
    assert two.status_code == 400


def test_the_address_that_a_request_arrives_at_is_a_name_of_the_server():
    http = browser(Access(host_names("0.0.0.0")), url="http://192.168.1.7:7860")
    assert http.get("/").text == "in"
    assert http.get("/", headers={"Host": "192.168.1.8:7860"}).status_code == 403
    assert browser(Access(host_names("::")), url="http://[fe80::1]:7860").get("/", headers={"Host": "[fe80::1]"}).text == "in"


def test_names_are_added_one_by_one():
    http = browser(Access(host_names("0.0.0.0", ("box.example", "10.0.0.9"))))
    assert {http.get("/", headers={"Host": host}).text for host in ("box.example", "BOX.example:80", "10.0.0.9")} == {"in"}
    assert http.get("/", headers={"Host": "other.example"}).status_code == 403
    assert http.get("/", headers={"Host": socket.gethostname()}).text == "in"


@pytest.mark.parametrize("name", ["http://a.b", "a.b:80", "", "a b", "*", "a/b", "x" * 300 + "!"])
def test_a_name_that_is_none_is_one_short_sentence(name):
    with pytest.raises(ValueError, match="must be a name such as") as caught:
        host_names("0.0.0.0", (name,))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("origin", [
    "http://evil.com", "null", "http://localhost:3000", "https://localhost:7860", "http://127.0.0.1:7860", "file://",
    "localhost:7860", "http://localhost", "http://localhost:7860/", "http://localhost.evil.com:7860",
])  # fmt: skip
def test_a_page_of_another_origin_may_ask_nothing(origin):
    headers = {"Host": "localhost:7860", "Origin": origin}
    for method in ("GET", "POST", "OPTIONS"):
        response = browser().request(method, "/v1/completions", headers=headers)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers


def test_the_servers_own_page_may_ask():
    headers = {"Host": "localhost:7860", "Origin": "http://localhost:7860"}
    assert browser().post("/", headers=headers).text == "in"
    assert browser().post("/", headers={"Host": "localhost", "Origin": "http://localhost"}).text == "in"  # port 80
    two = [("Host", "localhost:7860"), ("Origin", "http://localhost:7860"), ("Origin", "http://evil.com")]
    assert browser().post("/", headers=two).status_code == 400


SECRET = Access(token="open-sesame")


@pytest.mark.parametrize("headers", [
    {}, {"Authorization": "Bearer open"}, {"Authorization": "open-sesame"}, {"Authorization": "Basic open-sesame"},
    {"Cookie": "token=open-sesame"}, {"Cookie": "numllama-7860=x"}, {"Cookie": "numllama-80=open-sesame"},
    {"Authorization": "Bearer " + "é" * 9},
])  # fmt: skip
def test_without_the_token_nothing_is_answered(headers):
    headers = {name: value.encode("latin-1") for name, value in headers.items()}
    for path in ("/", "/v1/models", "/assets/a.js"):
        response = browser(SECRET).get(path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert "token" in response.json()["error"]["message"]


def test_programs_send_the_token_as_bearer():
    for words in ("Bearer open-sesame", "bearer  open-sesame "):
        assert browser(SECRET).post("/v1/completions", headers={"Authorization": words}).text == "in"


def test_a_browser_that_follows_the_link_gets_a_cookie_and_is_sent_to_the_page():
    http = browser(SECRET)
    form = http.get("/", headers={"Accept": "text/html"})
    assert form.status_code == 401
    assert '<input id="token"' in form.text
    assert http.get("/?token=wrong").status_code == 401
    response = http.get("/?token=open-sesame")
    assert (response.status_code, response.headers["location"]) == (303, "/")
    assert "HttpOnly" in response.headers["set-cookie"]
    assert "SameSite" in response.headers["set-cookie"]
    assert http.get("/").text == "in"  # the cookie came along
    assert http.get("/v1/models").text == "in"


def test_the_token_does_not_open_a_server_that_is_asked_for_by_another_name():
    headers = {"Host": "evil.com", "Authorization": "Bearer open-sesame"}
    assert browser(SECRET).get("/", headers=headers).status_code == 403
    assert browser(SECRET).get("/?token=open-sesame", headers={"Host": "evil.com"}).status_code == 403


def test_a_token_is_new_each_time_or_the_given_one():
    assert resolve_token(False) is None
    assert resolve_token("abc") == "abc"
    assert len({resolve_token(True) for _ in range(5)}) == 5
    for wrong in ("", "a b", "é", "a;b", "x" * 201):
        with pytest.raises(ValueError, match="token must be"):
            resolve_token(wrong)


@pytest.mark.parametrize(
    "address, local", [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("0.0.0.0", False), ("::", False)]
)
def test_which_addresses_only_this_machine_reaches(address, local):
    assert is_loopback(address) is local


def test_a_server_beyond_this_machine_says_loudly_that_it_has_no_token(capsys):
    for host, access, words in [("127.0.0.1", Access(), ""), ("0.0.0.0", Access(), "WARNING: NO TOKEN"), ("0.0.0.0", SECRET, "")]:
        with server._listen(host, 0) as listener:
            server._announce("small", host, listener, access)
        out, err = capsys.readouterr()
        assert err.count("\n") == bool(words)
        assert words in err
        assert out.count("open-sesame") == (2 if access is SECRET else 0)


def test_a_server_that_listens_on_another_address_refuses_other_names():
    with served(small_engine(), access=Access(host_names("127.0.0.2"))) as url, client(url) as http:
        assert http.get("/v1/models").status_code == 200
        assert http.get("/v1/models", headers={"Host": "evil.com", "Origin": "http://evil.com"}).status_code == 403
