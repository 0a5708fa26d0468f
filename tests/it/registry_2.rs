//! Responses of `registry:2` outside of the specification: its root, `OPTIONS`, and the headers of its configuration
//! file.

use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Authority, Client, Conn, TestServer};

#[tokio::test]
async fn the_root_is_alive_for_every_method() {
    let server = TestServer::builder().start().await;
    for method in ["GET", "HEAD", "POST", "OPTIONS"] {
        let answer = server.send(method, "/", &[], "").await;
        assert_eq!(
            (answer.status, answer.header("cache-control"), answer.body.len()),
            (200, "no-cache", 0),
            "{method}"
        );
    }
    assert_eq!(server.get("/x").await.status, 404);
}

#[tokio::test]
async fn options_names_the_methods() {
    let server = TestServer::builder().start().await;
    for (path, methods) in [
        ("/v2/", "GET, HEAD"),
        ("/v2/_catalog", "GET, HEAD"),
        ("/v2/team/app/tags/list", "GET, HEAD"),
        ("/v2/team/app/manifests/v1", "GET, HEAD, PUT, DELETE"),
        ("/v2/team/app/blobs/uploads/", "POST"),
    ] {
        let answer = server.send("OPTIONS", path, &[("origin", "http://ui.example")], "").await;
        assert_eq!((answer.status, answer.header("allow"), answer.body.len()), (200, methods, 0), "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), "", "nothing is allowed unless it is configured");
    }
    assert_eq!(server.send("OPTIONS", "/v2/nothing", &[], "").await.status, 404);
    assert_eq!(server.send("TRACE", "/v2/", &[], "").await.status, 405);
}

/// The headers that the user interface of a registry needs according to its guide.
const CORS: [(&str, &str); 4] = [
    ("REGISTRY_HTTP_HEADERS_Access-Control-Allow-Origin", "[http://ui.example]"),
    ("REGISTRY_HTTP_HEADERS_Access-Control-Allow-Methods", "['HEAD, GET, OPTIONS, DELETE']"),
    ("REGISTRY_HTTP_HEADERS_Access-Control-Expose-Headers", "[Docker-Content-Digest, X-Two]"),
    ("REGISTRY_HTTP_HEADERS_Content-Type", "[text/plain]"),
];

#[tokio::test]
async fn headers_of_the_configuration_are_in_every_response() {
    let server = ServerProcess::start_with(&std::env::temp_dir(), Settings::new(), &CORS);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], server.port()));
    for (method, path, status) in [
        ("GET", "/v2/", 200),
        ("HEAD", "/v2/", 200),
        ("GET", "/", 200),
        ("GET", "/healthz", 200),
        ("GET", "/metrics", 200),
        ("GET", "/v2/team/none/manifests/v1", 404),
        ("GET", "/nothing", 404),
        ("OPTIONS", "/v2/team/app/manifests/v1", 200),
        ("PATCH", "/v2/", 405),
        ("DELETE", "/metrics", 405),
        ("POST", "/v2/team/app/blobs/uploads/", 202),
    ] {
        let answer = Client::new().send(method, &server.url(path), &[("origin", "http://ui.example")], "").await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.header("access-control-allow-origin"), "http://ui.example", "{method} {path}");
        assert_eq!(answer.header("access-control-allow-methods"), "HEAD, GET, OPTIONS, DELETE", "{method} {path}");
        let exposed: Vec<_> = answer.headers.get_all("access-control-expose-headers").iter().collect();
        assert_eq!(exposed, ["Docker-Content-Digest", "X-Two"], "{method} {path}");
    }
    let ping = Client::new().get(&server.url("/v2/")).await;
    assert_eq!(ping.headers.get_all("content-type").iter().collect::<Vec<_>>(), ["application/json"]);
    let refused = Conn::ask(address, "GET /v2/ HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (400, "http://ui.example"));
}

#[tokio::test]
async fn headers_are_in_responses_over_http2() {
    let authority = Authority::new();
    let settings = Settings::new().config(&authority.config("one"));
    let server = ServerProcess::start_with(&std::env::temp_dir(), settings, &CORS);
    let client = Client::trusting(&authority.ca, None);
    let url = format!("https://127.0.0.1:{}/v2/", server.port());
    for method in ["GET", "HEAD", "OPTIONS"] {
        let answer = client.send(method, &url, &[], "").await;
        assert_eq!(
            (answer.status, answer.header("access-control-allow-origin")),
            (200, "http://ui.example"),
            "{method}"
        );
    }
}
