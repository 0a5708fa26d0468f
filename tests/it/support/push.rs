//! Plain pushes (POST, PUT, manifest) to Roadstead or any other registry.

use bytes::Bytes;

use super::client::{Answer, Client};
use super::image::{Content, Image, Index};

impl Client {
    /// Pushes the blob in one PUT after a POST. `base` is `http://host:port`.
    pub async fn push_blob(&self, base: &str, repository: &str, blob: &Content) -> Answer {
        let location = self.start_upload(base, repository).await;
        let mark = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{mark}digest={}", blob.digest);
        let headers = [("Content-Type", "application/octet-stream")];
        let answer = self.send("PUT", &url, &headers, blob.bytes.clone()).await;
        assert_eq!(answer.status, 201, "PUT {url}: {}", answer.text());
        answer
    }

    /// The absolute URL of a new upload session.
    pub async fn start_upload(&self, base: &str, repository: &str) -> String {
        let url = format!("{base}/v2/{repository}/blobs/uploads/");
        let answer = self.send("POST", &url, &[("Content-Length", "0")], Bytes::new()).await;
        assert_eq!(answer.status, 202, "POST {url}: {}", answer.text());
        absolute(base, answer.header("location"))
    }

    /// Pushes the manifest under a tag or a digest.
    pub async fn push_manifest(&self, base: &str, repository: &str, reference: &str, manifest: &Content) -> Answer {
        let url = format!("{base}/v2/{repository}/manifests/{reference}");
        let headers = [("Content-Type", manifest.media_type.as_str())];
        let answer = self.send("PUT", &url, &headers, manifest.bytes.clone()).await;
        assert_eq!(answer.status, 201, "PUT {url}: {}", answer.text());
        answer
    }

    pub async fn push_image(&self, base: &str, repository: &str, tag: &str, image: &Image) {
        for blob in image.blobs() {
            self.push_blob(base, repository, blob).await;
        }
        self.push_manifest(base, repository, tag, &image.manifest).await;
    }

    pub async fn push_index(&self, base: &str, repository: &str, tag: &str, index: &Index) {
        for image in &index.images {
            self.push_image(base, repository, image.digest(), image).await;
        }
        self.push_manifest(base, repository, tag, &index.manifest).await;
    }
}

/// Resolves a `Location`, which may be a path or a URL.
pub fn absolute(base: &str, location: &str) -> String {
    if location.starts_with('/') { format!("{base}{location}") } else { location.to_owned() }
}

/// The path in `Link: <...>; rel="next"`, which must be relative; `None` on the last page.
pub fn next_page(answer: &Answer) -> Option<String> {
    let link = answer.header("link").strip_prefix('<')?;
    let (target, rel) = link.split_once('>').expect("a link has an end");
    assert_eq!(rel, "; rel=\"next\"");
    assert!(target.starts_with("/v2/"), "{target} is not relative");
    Some(target.to_owned())
}
