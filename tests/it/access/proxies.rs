//! What a trusted proxy says about its clients, and what other clients say of themselves.

use std::net::IpAddr;

use super::{Access, CLOSED, RULES, basic};
use crate::support::Conn;

const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

async fn behind_a_proxy(rules: &str, server: &str) -> Access {
    Access::configured(rules, &format!("[server]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\n{server}")).await
}

/// A GET of `Host: inner.example` from this address.
async fn get(access: &Access, source: IpAddr, path: &str, headers: &[(&str, &str)]) -> Conn {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\nHost: inner.example\r\n{headers}\r\n");
    Conn::ask_from(source, access.server.addr(), &request).await.unwrap()
}

fn realm(url: &str) -> String {
    let host = url.split_once("://").unwrap().1;
    format!("Bearer realm=\"{url}/auth/token\",service=\"{host}\"")
}

#[tokio::test]
async fn clients_are_sent_for_tokens_where_their_proxy_is() {
    let access = behind_a_proxy(CLOSED, "").await;
    let (proto, host) = (("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "cache.example:8443"));
    for (headers, expected) in [
        (&[][..], "http://inner.example"),
        (&[proto], "https://inner.example"),
        (&[host], "http://cache.example:8443"),
        (&[proto, host], "https://cache.example:8443"),
        (&[("X-Forwarded-Proto", "https, http"), ("X-Forwarded-Host", "a.example, b.example")], "https://a.example"),
        (&[("Forwarded", "for=192.0.2.1;proto=https;host=a.example")], "https://a.example"),
        (&[("Forwarded", "proto=https;host=forged.example"), host], "http://cache.example:8443"),
        // What is malformed is ignored, and no error.
        (&[proto, ("X-Forwarded-Host", "a\"b")], "https://inner.example"),
        (&[proto, ("X-Forwarded-Host", "a b/c@d")], "https://inner.example"),
        (&[("X-Forwarded-Proto", "gopher"), ("X-Forwarded-For", "\"<>\"")], "http://inner.example"),
    ] {
        let answer = get(&access, PROXY, "/v2/", headers).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, &*realm(expected)), "{headers:?}");
        let answer = get(&access, OTHER, "/v2/", headers).await;
        assert_eq!(answer.header("www-authenticate"), realm("http://inner.example"), "{headers:?} of another client");
    }
    let external = behind_a_proxy(CLOSED, "external_url = \"https://outer.example\"").await;
    let answer = get(&external, PROXY, "/v2/", &[proto, host]).await;
    assert_eq!(answer.header("www-authenticate"), realm("https://outer.example"));
}

#[tokio::test]
async fn the_host_that_a_proxy_was_asked_for_selects_the_upstream() {
    let access = behind_a_proxy(RULES, "host_routes = [\"cache.example\"]").await;
    let host = ("X-Forwarded-Host", "docker-io.cache.example");
    for (source, status) in [(PROXY, 200), (OTHER, 401)] {
        assert_eq!(get(&access, source, "/v2/", &[host]).await.status, status, "{source}");
    }
    // With a fast path and without it.
    for _ in 0..2 {
        assert_eq!(get(&access, PROXY, "/v2/library/alpine/manifests/1", &[host]).await.status, 200);
    }
    let unknown = ("X-Forwarded-Host", "none.cache.example");
    assert_eq!(get(&access, PROXY, "/v2/library/alpine/manifests/1", &[unknown]).await.status, 404);
    assert_eq!(get(&access, OTHER, "/v2/library/alpine/manifests/1", &[unknown]).await.status, 200);
}

#[tokio::test]
async fn wrong_passwords_count_for_the_client_behind_the_proxy() {
    let access = behind_a_proxy(CLOSED, "").await;
    let attempt = async |source: IpAddr, client: &str, password: &str| {
        let login = basic("bob", password);
        get(&access, source, "/auth/token", &[("Authorization", &login), ("X-Forwarded-For", client)]).await.status
    };
    for number in 0..10 {
        // What the client sends itself is to the left of its address.
        let forged = format!("198.51.100.{number}, 192.0.2.1, 10.0.0.7");
        assert_eq!(attempt(PROXY, &forged, &number.to_string()).await, 401);
    }
    assert_eq!(attempt(PROXY, "192.0.2.1", "bob-password").await, 429);
    assert_eq!(attempt(PROXY, "192.0.2.2", "bob-password").await, 200, "another client of the proxy");
    // Other clients cannot name another address.
    for number in 0..10 {
        assert_eq!(attempt(OTHER, &format!("192.0.2.{}", 100 + number), &format!("other {number}")).await, 401);
    }
    assert_eq!(attempt(OTHER, "192.0.2.200", "x").await, 429);
    assert_eq!(attempt(PROXY, "192.0.2.200", "y").await, 401);
}

#[tokio::test]
async fn a_form_counts_for_the_client_behind_the_proxy_too() {
    let access = behind_a_proxy(CLOSED, "").await;
    let attempt = async |client: &str, password: &str| {
        let form = format!("grant_type=password&username=bob&password={password}");
        access.server.send("POST", "/auth/token", &[("X-Forwarded-For", client)], form).await.status
    };
    for number in 0..10 {
        assert_eq!(attempt("192.0.2.1", &number.to_string()).await, 401);
    }
    assert_eq!(attempt("192.0.2.1", "x").await, 429);
    assert_eq!(attempt("192.0.2.2", "bob-password").await, 200);
}
