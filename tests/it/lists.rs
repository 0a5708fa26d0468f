//! Lists of tags and repositories: order, pages and sources.

use serde_json::{Value, json};

use crate::support::image::{OCI_LAYER, OCI_MANIFEST};
use crate::support::{Client, Content, Image, Reply, TestServer, Upstream};

const REPO: &str = "team/app";

/// Pushes these tags into a repository, in another order.
async fn push_tags(client: &Client, base: &str, repo: &str, tags: &[&str]) {
    let image = Image::new(1, &[5]);
    client.push_image(base, repo, tags[0], &image).await;
    let query: String = tags.iter().rev().map(|tag| format!("&tag={tag}")).collect();
    let url = format!("{base}/v2/{repo}/manifests/{}?{}", image.digest(), &query[1..]);
    let answer = client.send("PUT", &url, &[("Content-Type", OCI_MANIFEST)], image.manifest.bytes).await;
    assert_eq!(answer.status, 201);
}

async fn make_local(server: &TestServer, repo: &str) {
    server.client().push_blob(&server.url(""), repo, &Content::new(OCI_LAYER, "a layer")).await;
}

/// The target of `Link: <...>; rel="next"`; empty when there is none.
fn next(link: &str) -> &str {
    match link.strip_prefix('<').and_then(|link| link.split_once('>')) {
        Some((target, rel)) => {
            assert_eq!(rel, "; rel=\"next\"");
            assert!(target.starts_with('/'), "{target} is not relative");
            target
        }
        None => "",
    }
}

/// Follows the links from `path` to the end and returns the pages.
async fn pages(server: &TestServer, path: &str, field: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut path = path.to_owned();
    while !path.is_empty() {
        let answer = server.get(&path).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{}", answer.text());
        pages.push(serde_json::from_value(answer.json()[field].clone()).expect("a list of strings"));
        path = next(answer.header("link")).to_owned();
    }
    pages
}

#[tokio::test]
async fn tags_are_listed_in_ascii_order_and_pages() {
    let server = TestServer::builder().start().await;
    push_tags(server.client(), &server.url(""), REPO, &["v2", "latest", "V1", "_x", "v10", "1.0", "v1", "v1-a"]).await;
    let sorted = ["1.0", "V1", "_x", "latest", "v1", "v1-a", "v10", "v2"];
    let list = format!("/v2/{REPO}/tags/list");
    assert_eq!(server.get(&list).await.json(), json!({"name": REPO, "tags": sorted}));
    for n in 1..=9 {
        let pages = pages(&server, &format!("{list}?n={n}"), "tags").await;
        assert_eq!(pages.concat(), sorted, "n={n}");
        assert!(pages.iter().rev().skip(1).all(|page| page.len() == n), "only the last page is short: {pages:?}");
    }
    for (query, tags, linked) in [
        ("?last=V1", &sorted[2..], false),
        ("?n=2&last=latest", &sorted[4..6], true),
        ("?last=v1-", &sorted[5..], false),
        ("?last=v1-a&n=2", &sorted[6..], false),
        ("?last=zzz", &[], false),
        ("?last=", &sorted[..], false),
        ("?n=0", &[], false),
        ("?n=8", &sorted[..], false),
        ("?n=99999999999999999999999", &sorted[..], false),
        ("?n=1000000", &sorted[..], false),
    ] {
        let answer = server.get(&format!("{list}{query}")).await;
        assert_eq!(answer.json()["tags"], json!(tags), "{query}");
        assert_eq!(!answer.header("link").is_empty(), linked, "{query}: {}", answer.header("link"));
    }
    for n in ["-1", "x", "", "1.5", "+1", "%00"] {
        for path in [list.as_str(), "/v2/_catalog"] {
            let answer = server.get(&format!("{path}?n={n}")).await;
            assert_eq!((answer.status, answer.error_code().as_str()), (400, "PAGINATION_NUMBER_INVALID"), "n={n:?}");
        }
    }
}

#[tokio::test]
async fn the_catalogue_lists_local_repositories_only() {
    let upstream = Upstream::start().await;
    upstream.add_image("library/alpine", "1", &Image::new(2, &[5]));
    let server = TestServer::mirror_of(&upstream).await;
    assert_eq!(server.get("/v2/_catalog").await.json(), json!({"repositories": []}));
    server.get("/v2/alpine/manifests/1").await;
    for repo in ["b/c", "team/app", "a", "b", "team/app2", "b-c"] {
        make_local(&server, repo).await;
    }
    let sorted = ["a", "b", "b-c", "b/c", "team/app", "team/app2"];
    assert_eq!(server.get("/v2/_catalog").await.json(), json!({"repositories": sorted}));
    for n in 1..=6 {
        let pages = pages(&server, &format!("/v2/_catalog?n={n}"), "repositories").await;
        assert_eq!(pages.concat(), sorted, "n={n}");
        assert_eq!(pages.len(), 6_usize.div_ceil(n));
    }
    let after = server.get("/v2/_catalog?last=b-c").await.json();
    assert_eq!(after["repositories"], json!(["b/c", "team/app", "team/app2"]));
}

#[tokio::test]
async fn an_unknown_repository_is_404_and_an_untagged_one_empty() {
    let server = TestServer::builder().start().await;
    let unknown = server.get("/v2/team/none/tags/list").await;
    assert_eq!((unknown.status, unknown.error_code().as_str()), (404, "NAME_UNKNOWN"));
    make_local(&server, REPO).await;
    assert_eq!(server.get(&format!("/v2/{REPO}/tags/list")).await.json(), json!({"name": REPO, "tags": []}));
}

#[tokio::test]
async fn lists_are_the_same_without_the_index() {
    let mut server = TestServer::builder().start().await;
    push_tags(server.client(), &server.url(""), REPO, &["c", "a", "b"]).await;
    make_local(&server, "other").await;
    let look = async |server: &TestServer| {
        let mut seen: Vec<Value> = Vec::new();
        for path in [&format!("/v2/{REPO}/tags/list?n=2"), "/v2/_catalog?n=1", "/v2/_catalog?last=other"] {
            let answer = server.get(path).await;
            seen.push(json!([answer.json(), answer.header("link")]));
        }
        seen
    };
    let before = look(&server).await;
    let data = server.data_dir().to_owned();
    server.restart_with("[cache]\ntag_ttl = \"1s\"").await;
    assert_eq!(look(&server).await, before, "after a clean restart");
    // During the walk and after it, the responses are the same.
    server = restart_without_index(server, &data).await;
    for _ in 0..20 {
        assert_eq!(look(&server).await, before);
    }
}

async fn restart_without_index(mut server: TestServer, data: &std::path::Path) -> TestServer {
    let index = data.join("index");
    let aside = data.join("index.away");
    server.stop_running().await;
    std::fs::rename(index, aside).unwrap();
    server.restart().await;
    server
}

#[tokio::test]
async fn the_last_list_is_served_in_an_outage() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[5]);
    for tag in ["a", "b", "c", "d"] {
        upstream.add_image("org/app", tag, &image);
    }
    let mut server = TestServer::mirror_of(&upstream).await;
    let list = "/v2/docker.io/org/app/tags/list";
    assert_eq!(pages(&server, &format!("{list}?n=3"), "tags").await.concat(), ["a", "b", "c", "d"]);
    assert_eq!(server.get(list).await.json()["name"], "docker.io/org/app");
    // The link keeps the `ns` of the client.
    let by_ns = "/v2/org/app/tags/list?n=2&ns=docker.io";
    let first = server.get(by_ns).await;
    assert!(next(first.header("link")).contains("ns=docker.io"));
    assert_eq!(first.header("oci-namespace"), "docker.io");
    assert_eq!(pages(&server, by_ns, "tags").await.concat(), ["a", "b", "c", "d"]);
    for tag in ["b", "d"] {
        server.get(&format!("/v2/org/app/manifests/{tag}")).await;
    }
    // Without `ns` the repository is known by now, so the default upstream is asked.
    assert_eq!(server.get("/v2/org/app/tags/list").await.json()["tags"], json!(["a", "b", "c", "d"]));
    let limited = Reply::error(429, "TOOMANYREQUESTS").header("Retry-After", "0");
    for trouble in [Reply::error(500, "UNKNOWN"), limited, Reply::normal().body("no list")] {
        upstream.always("GET", "/v2/org/app/tags/list", trouble);
        let answer = server.get(list).await;
        assert_eq!(answer.json()["tags"], json!(["a", "b", "c", "d"]), "the last list");
        assert!(answer.header("warning").starts_with("299"));
        upstream.end_scripts();
    }
    upstream.go_down().await;
    server.restart().await;
    assert_eq!(server.get(list).await.json()["tags"], json!(["a", "b", "c", "d"]));
    assert_eq!(pages(&server, &format!("{list}?n=3"), "tags").await, [vec!["a", "b", "c"], vec!["d"]]);
    let unknown = server.get("/v2/docker.io/org/other/tags/list").await;
    assert_eq!(unknown.status, 503, "{}", unknown.text());
}

#[tokio::test]
async fn without_a_last_list_an_outage_lists_the_cached_tags_or_fails() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[5]);
    for tag in ["a", "b", "c", "d"] {
        upstream.add_image("org/app", tag, &image);
        upstream.add_image("org/by-digest", tag, &image);
    }
    let server = TestServer::mirror_of(&upstream).await;
    for path in ["app/manifests/b", "app/manifests/d", &format!("by-digest/manifests/{}", image.digest())] {
        assert_eq!(server.get(&format!("/v2/docker.io/org/{path}")).await.status, 200);
    }
    upstream.go_down().await;
    let list = "/v2/docker.io/org/app/tags/list";
    let answer = server.get(list).await;
    assert_eq!(answer.json()["tags"], json!(["b", "d"]));
    assert!(answer.header("warning").starts_with("299"));
    assert_eq!(pages(&server, &format!("{list}?n=1"), "tags").await, [["b"], ["d"]]);
    // No tag is cached, and an empty list would say that there is none.
    let answer = server.get("/v2/docker.io/org/by-digest/tags/list").await;
    assert_eq!((answer.status, answer.error_code().as_str()), (503, "UNAVAILABLE"));
}

#[tokio::test]
async fn malformed_upstream_lists_are_cleaned() {
    let upstream = Upstream::start().await;
    upstream.add_image("org/app", "a", &Image::new(1, &[5]));
    let server = TestServer::mirror_of(&upstream).await;
    let list = "/v2/docker.io/org/app/tags/list";
    let body = |body: &'static str| Reply::normal().body(body);
    for (reply, query, tags, linked) in [
        (body("{\"name\":\"x\",\"tags\":null}"), "", json!([]), false),
        (body("{}"), "", json!([]), false),
        (body("{\"tags\":[\"a\",\"../x\",\"\",\"a b\",\"b\"]}"), "", json!(["a", "b"]), false),
        // The upstream ignores `n`: the page is cut, and the rest is on the next page.
        (body("{\"tags\":[\"a\",\"b\",\"c\"]}"), "?n=2", json!(["a", "b"]), true),
    ] {
        upstream.script("GET", "/v2/org/app/tags/list", [reply]);
        let answer = server.get(&format!("{list}{query}")).await;
        assert_eq!((answer.json()["tags"].clone(), !answer.header("link").is_empty()), (tags, linked));
    }
    let gone = server.get("/v2/docker.io/org/none/tags/list").await;
    assert_eq!((gone.status, gone.error_code().as_str()), (404, "NAME_UNKNOWN"));
}

#[tokio::test]
async fn upstream_page_tokens_are_passed_through() {
    let (upstream, elsewhere) = (Upstream::start().await, Upstream::start().await);
    upstream.add_image("org/app", "a", &Image::new(1, &[5]));
    let server = TestServer::mirror_of(&upstream).await;
    let theirs = "/v2/org/app/tags/list";
    let absolute = |query: &str| format!("<{}?{query}>; rel=\"next\"", elsewhere.url(theirs));
    let list = |tags: &str| Reply::normal().body(format!("{{\"tags\":[{tags}]}}"));
    for (link, asks) in [
        // A page token that is not a tag, as ECR sends it, and unsorted tags.
        (absolute("n=2&last=q%2F8%3D"), "n=2&last=q%2F8%3D"),
        // Quay's page token, and a relative link.
        (format!("<{theirs}?next_page=gAAA%3D&n=2>; rel=\"next\""), "n=2&next_page=gAAA%3D"),
        (absolute("last=x&n=0&ns=evil.example"), "n=2&last=x"),
    ] {
        upstream.script("GET", theirs, [list("\"z\",\"b\"").header("Link", &link), list("\"a\"")]);
        upstream.forget();
        let pages = pages(&server, "/v2/org/app/tags/list?n=2&ns=docker.io", "tags").await;
        assert_eq!(pages, [vec!["z", "b"], vec!["a"]], "{link}");
        let requested: Vec<String> = upstream.requests().into_iter().map(|seen| seen.query).collect();
        assert_eq!(requested, ["n=2", asks], "{link}");
    }
    assert_eq!(elsewhere.total(), 0);
}

#[tokio::test]
async fn a_list_without_upstream_pages_ends() {
    let upstream = Upstream::start().await;
    upstream.add_image("org/app", "a", &Image::new(1, &[5]));
    let server = TestServer::mirror_of(&upstream).await;
    let list = "/v2/docker.io/org/app/tags/list?n=2";
    upstream.always("GET", "/v2/org/app/tags/list", Reply::normal().body("{\"tags\":[\"c\",\"a\",\"b\",\"d\",\"e\"]}"));
    let ends = tokio::time::timeout(std::time::Duration::from_secs(20), pages(&server, list, "tags"));
    assert_eq!(ends.await.expect("it ends"), [vec!["c", "a"], vec!["b", "d"], vec!["e"]]);
    upstream.end_scripts();
    // The upstream's link leads to the same page again.
    let again = Reply::normal().body("{\"tags\":[\"a\"]}").header("Link", "</v2/org/app/tags/list?n=2>; rel=\"next\"");
    upstream.always("GET", "/v2/org/app/tags/list", again);
    let ends = tokio::time::timeout(std::time::Duration::from_secs(20), pages(&server, list, "tags"));
    assert_eq!(ends.await.expect("it ends"), [["a"]]);
}

#[tokio::test]
async fn only_a_cached_list_carries_a_warning() {
    let upstream = Upstream::start().await;
    upstream.add_image("org/app", "a", &Image::new(1, &[5]));
    let server = TestServer::mirror_of(&upstream).await;
    server.get("/v2/org/app/manifests/a").await;
    let warning = async || server.get("/v2/org/app/tags/list").await.header("warning").to_owned();
    assert_eq!(warning().await, "");
    upstream.go_down().await;
    let stale = warning().await;
    assert!(stale.starts_with("299 - \"") && stale.ends_with('"') && stale.len() < 4096, "{stale}");
    upstream.come_back().await;
    assert_eq!(warning().await, "");
}

#[tokio::test]
async fn a_page_holds_at_most_1000_entries() {
    let server = TestServer::builder().start().await;
    let tags: Vec<String> = (0..1030).map(|n| format!("t{n:04}")).collect();
    for tags in tags.chunks(64) {
        push_tags(server.client(), &server.url(""), REPO, &tags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let list = format!("/v2/{REPO}/tags/list");
    for query in ["", "?n=5000", "?n=1000"] {
        let pages = pages(&server, &format!("{list}{query}"), "tags").await;
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 30], "{query}");
        assert_eq!(pages.concat(), tags);
    }
}
