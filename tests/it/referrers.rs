//! Referrers of pushed content: descriptors, pages, and changes over time.

use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};

use crate::support::artifact::{EMPTY, about, empty, fallback_tag, manifest_about};
use crate::support::image::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::support::push::next_page;
use crate::support::{Answer, Content, Image, TestServer};

const REPO: &str = "team/app";
const SBOM: &str = "application/vnd.example.sbom";
const SIGNATURE: &str = "application/vnd.example.signature+json";

/// A server with an image as the subject, and the empty blob that artifacts need.
async fn scene() -> (TestServer, Content) {
    let server = TestServer::builder().start().await;
    let image = Image::new(1, &[10]);
    server.client().push_image(&server.url(""), REPO, "v1", &image).await;
    server.client().push_blob(&server.url(""), REPO, &empty()).await;
    (server, image.manifest)
}

async fn push(server: &TestServer, manifest: &Content) -> Answer {
    server.client().push_manifest(&server.url(""), REPO, &manifest.digest, manifest).await
}

fn path(subject: &Content) -> String {
    format!("/v2/{REPO}/referrers/{}", subject.digest)
}

async fn list(server: &TestServer, path: &str) -> Vec<Value> {
    let answer = server.get(path).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, OCI_INDEX), "{}", answer.text());
    let index = answer.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(OCI_INDEX)));
    index["manifests"].as_array().expect("a list").clone()
}

/// The digests of all pages, found by following the links.
async fn all_pages(server: &TestServer, path: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(path) = next {
        let page = list(server, &path).await;
        pages.push(page.iter().map(|referrer| referrer["digest"].as_str().unwrap().to_owned()).collect());
        next = next_page(&server.get(&path).await);
    }
    pages
}

#[tokio::test]
async fn a_referrer_is_listed_with_its_type_and_annotations() {
    let (server, subject) = scene().await;
    let annotations = json!({"org.example.b": "2", "a": "", "ü": "\u{1F40B}"});
    let typed = json!({"artifactType": SBOM, "annotations": annotations});
    for (what, manifest, artifact_type, annotations) in [
        ("an artifact", manifest_about(&subject, OCI_MANIFEST, &typed), json!(SBOM), annotations.clone()),
        ("typed by its config", manifest_about(&subject, OCI_MANIFEST, &json!({})), json!(EMPTY), Value::Null),
        (
            "with an empty type",
            manifest_about(&subject, OCI_MANIFEST, &json!({"artifactType": "", "x": 1})),
            json!(EMPTY),
            Value::Null,
        ),
        ("an index", manifest_about(&subject, OCI_INDEX, &typed), json!(SBOM), annotations),
        ("an index without a type", manifest_about(&subject, OCI_INDEX, &json!({})), Value::Null, Value::Null),
        ("of Docker's type", manifest_about(&subject, DOCKER_MANIFEST, &json!({})), json!(EMPTY), Value::Null),
    ] {
        let answer = push(&server, &manifest).await;
        assert_eq!(answer.header("oci-subject"), subject.digest, "{what}");
        let mut expected = manifest.descriptor();
        for (field, value) in [("artifactType", artifact_type), ("annotations", annotations)] {
            if !value.is_null() {
                expected[field] = value;
            }
        }
        let listed = list(&server, &path(&subject)).await;
        assert!(listed.contains(&expected), "{what}: {expected} is not in {listed:?}");
    }
    assert_eq!(list(&server, &path(&subject)).await.len(), 6);
}

#[tokio::test]
async fn an_artifact_type_filter_is_applied_and_announced() {
    let (server, subject) = scene().await;
    let [first, second, other] =
        [(SBOM, 1), (SBOM, 2), (SIGNATURE, 3)].map(|(kind, n)| about(&subject, kind, &json!({"n": n.to_string()})));
    for manifest in [&first, &second, &other] {
        push(&server, manifest).await;
    }
    for (query, applied, expected) in [
        (format!("?artifactType={SBOM}"), "artifactType", vec![&first, &second]),
        (format!("?artifactType={}", SIGNATURE.replace('+', "%2B")), "artifactType", vec![&other]),
        ("?artifactType=no/such".to_owned(), "artifactType", vec![]),
        ("?artifactType=".to_owned(), "", vec![&first, &second, &other]),
        (String::new(), "", vec![&first, &second, &other]),
    ] {
        let path = format!("{}{query}", path(&subject));
        let found: BTreeSet<String> = all_pages(&server, &path).await.concat().into_iter().collect();
        assert_eq!(found, expected.iter().map(|manifest| manifest.digest.clone()).collect(), "{query}");
        assert_eq!(server.get(&path).await.header("oci-filters-applied"), applied, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_referrers_are_listed_in_linked_pages() {
    let (server, subject) = scene().await;
    let kind = |n: u32| if n.is_multiple_of(3) { SIGNATURE } else { SBOM };
    let manifests: Vec<Content> = (0..450).map(|n| about(&subject, kind(n), &json!({"n": n.to_string()}))).collect();
    let pushes = manifests.iter().map(|manifest| push(&server, manifest));
    stream::iter(pushes).buffer_unordered(16).collect::<Vec<_>>().await;
    let all: BTreeSet<String> = manifests.iter().map(|manifest| manifest.digest.clone()).collect();
    let pages = all_pages(&server, &path(&subject)).await;
    assert_eq!(pages.concat(), all.iter().cloned().collect::<Vec<_>>(), "each exactly once, in order");
    assert_eq!(pages.len(), 3);
    // The link keeps the filter, and only matching entries count.
    let filtered = format!("{}?artifactType={SBOM}", path(&subject));
    let pages = all_pages(&server, &filtered).await;
    assert_eq!((pages.concat().len(), pages.len()), (300, 2));
    assert!(next_page(&server.get(&filtered).await).unwrap().contains("artifactType=application"));
    // A referrer deleted between two pages hides no other.
    let next = next_page(&server.get(&path(&subject)).await).unwrap();
    let (_, last) = next.split_once("last=").unwrap();
    server.delete(&format!("/v2/{REPO}/manifests/{}", last.replace("%3A", ":"))).await;
    assert_eq!(all_pages(&server, &next).await.concat().len(), 250);
}

#[tokio::test]
async fn large_annotations_make_smaller_pages() {
    let (server, subject) = scene().await;
    for n in 0..4 {
        push(&server, &about(&subject, SBOM, &json!({"n": n.to_string(), "x": "x".repeat(1 << 20)}))).await;
    }
    let pages = all_pages(&server, &path(&subject)).await;
    assert_eq!(pages.concat().len(), 4);
    assert!(pages.len() > 1, "the list has several pages");
    let huge = about(&subject, SIGNATURE, &json!({"x": "x".repeat(3 << 20)}));
    push(&server, &huge).await;
    let filtered = format!("{}?artifactType={}", path(&subject), SIGNATURE.replace('+', "%2B"));
    assert_eq!(all_pages(&server, &filtered).await, [[huge.digest]]);
}

#[tokio::test]
async fn unknown_digests_have_no_referrers_and_invalid_ones_are_refused() {
    let (server, subject) = scene().await;
    let unknown = Content::new(OCI_MANIFEST, "stored nowhere");
    for path in [path(&subject), path(&unknown), path(&unknown).replace(REPO, "team/none")] {
        assert_eq!(list(&server, &path).await, Vec::<Value>::new(), "{path}");
        assert_eq!(server.head(&path).await.status, 200);
    }
    for digest in ["v1", "sha256:12", "md5:00", "sha256:", &subject.digest.to_uppercase()] {
        let answer = server.get(&format!("/v2/{REPO}/referrers/{digest}")).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (400, "DIGEST_INVALID"), "{digest}");
    }
}

#[tokio::test]
async fn a_referrer_is_independent_of_its_subject() {
    let (mut server, subject) = scene().await;
    let later = Image::new(2, &[10]);
    let early = about(&later.manifest, SBOM, &json!({}));
    assert_eq!(push(&server, &early).await.header("oci-subject"), later.digest());
    let listed = list(&server, &path(&later.manifest)).await;
    assert_eq!(listed.len(), 1);
    server.client().push_image(&server.url(""), REPO, "v2", &later).await;
    assert_eq!(list(&server, &path(&later.manifest)).await, listed);
    server.delete(&format!("/v2/{REPO}/manifests/{}", later.digest())).await;
    server.restart().await;
    assert_eq!(list(&server, &path(&later.manifest)).await, listed, "after the deletion of the subject and a restart");
    assert!(list(&server, &path(&subject)).await.is_empty());
    // Other repositories do not list it.
    assert!(list(&server, &path(&later.manifest).replace(REPO, "team/other")).await.is_empty());
}

#[tokio::test]
async fn only_deleting_its_manifest_removes_a_referrer() {
    let (server, subject) = scene().await;
    let [kept, gone] = ["1", "2"].map(|n| about(&subject, SBOM, &json!({"n": n})));
    for (manifest, tag) in [(&kept, "kept"), (&gone, "gone")] {
        server.client().push_manifest(&server.url(""), REPO, tag, manifest).await;
    }
    assert_eq!(list(&server, &path(&subject)).await.len(), 2);
    assert_eq!(server.delete(&format!("/v2/{REPO}/manifests/kept")).await.status, 202);
    assert_eq!(server.delete(&format!("/v2/{REPO}/manifests/{}", gone.digest)).await.status, 202);
    let left = list(&server, &path(&subject)).await;
    assert_eq!(left.iter().map(|left| &left["digest"]).collect::<Vec<_>>(), [&json!(kept.digest)]);
    push(&server, &gone).await;
    assert_eq!(list(&server, &path(&subject)).await.len(), 2);
}

#[tokio::test]
async fn manifests_pushed_with_a_fallback_tag_are_listed() {
    let (server, subject) = scene().await;
    let base = server.url("");
    // A client without the referrers API pushes the artifact and then the index under the fallback tag.
    let artifact = about(&subject, SBOM, &json!({"by": "an old client"}));
    push(&server, &artifact).await;
    let unrelated = Image::new(5, &[]);
    server.client().push_image(&base, REPO, "unrelated", &unrelated).await;
    let entries = json!([artifact.descriptor(), unrelated.manifest.descriptor()]);
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let tag = fallback_tag(&subject);
    server.client().push_manifest(&base, REPO, &tag, &Content::json(OCI_INDEX, &index)).await;
    let listed = list(&server, &path(&subject)).await;
    assert_eq!(listed.len(), 1, "a manifest without a subject is not listed: {listed:?}");
    assert_eq!(listed[0]["digest"], json!(artifact.digest));
    // The fallback tag is unchanged, for clients that use only it.
    assert_eq!(server.get(&format!("/v2/{REPO}/manifests/{tag}")).await.json(), index);
    server.delete(&format!("/v2/{REPO}/manifests/{tag}")).await;
    assert_eq!(list(&server, &path(&subject)).await, listed);
}
