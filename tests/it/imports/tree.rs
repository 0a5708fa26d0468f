//! Sources written by hand: the folder of a registry:2, an OCI layout, tar files.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Content, Image, Index};

/// The folder of a registry:2.
pub struct RegistryFolder(TempDir);

impl RegistryFolder {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("docker/registry/v2/repositories")).unwrap();
        Self(folder)
    }

    pub fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    /// Writes a file below `docker/registry/v2`.
    pub fn write(&self, path: &str, bytes: &[u8]) {
        write(&self.at(path), bytes);
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.0.path().join("docker/registry/v2").join(path)
    }

    /// The path of content.
    pub fn data(&self, digest: &str) -> PathBuf {
        let hex = hex(digest);
        self.at(&format!("blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    pub fn blob(&self, repository: &str, blob: &Content) {
        write(&self.data(&blob.digest), &blob.bytes);
        let link = format!("repositories/{repository}/_layers/sha256/{}/link", hex(&blob.digest));
        self.write(&link, blob.digest.as_bytes());
    }

    pub fn manifest(&self, repository: &str, manifest: &Content) {
        write(&self.data(&manifest.digest), &manifest.bytes);
        let link = format!("repositories/{repository}/_manifests/revisions/sha256/{}/link", hex(&manifest.digest));
        self.write(&link, manifest.digest.as_bytes());
    }

    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        self.write(&format!("repositories/{repository}/_manifests/tags/{tag}/current/link"), digest.as_bytes());
        let past = format!("repositories/{repository}/_manifests/tags/{tag}/index/sha256/{}/link", hex(digest));
        self.write(&past, digest.as_bytes());
    }

    pub fn image(&self, repository: &str, tag: &str, image: &Image) {
        image.blobs().for_each(|blob| self.blob(repository, blob));
        self.manifest(repository, &image.manifest);
        self.tag(repository, tag, image.digest());
    }

    pub fn index(&self, repository: &str, tag: &str, index: &Index) {
        for image in &index.images {
            image.blobs().for_each(|blob| self.blob(repository, blob));
            self.manifest(repository, &image.manifest);
        }
        self.manifest(repository, &index.manifest);
        self.tag(repository, tag, index.digest());
    }

    /// Every file with its content, mode and time, to see that nothing changed.
    pub fn state(&self) -> Vec<(PathBuf, Vec<u8>, u32, std::time::SystemTime)> {
        use std::os::unix::fs::PermissionsExt;
        let mut files = Vec::new();
        let mut pending = vec![self.0.path().to_owned()];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                if metadata.is_dir() {
                    pending.push(path);
                } else {
                    let bytes = fs::read(&path).unwrap_or_default();
                    files.push((path, bytes, metadata.permissions().mode(), metadata.modified().unwrap()));
                }
            }
        }
        files.sort();
        files
    }
}

/// An OCI layout with these manifests in `index.json`, each with its annotations.
pub fn layout(folder: &Path, content: &[&Content], listed: &[(&Content, Value)]) {
    write(&folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
    for content in content {
        write(&folder.join("blobs/sha256").join(hex(&content.digest)), &content.bytes);
    }
    let entries = listed.iter().map(|(manifest, annotations)| {
        let mut entry = manifest.descriptor();
        entry["annotations"] = annotations.clone();
        entry
    });
    let index = json!({"schemaVersion": 2, "manifests": entries.collect::<Vec<_>>()});
    write(&folder.join("index.json"), index.to_string().as_bytes());
}

/// An archive as docker save wrote it before version 25: the second layer of two equal ones is a link.
pub fn docker_archive(folder: &Path, names: &[&str], config: &[u8], layers: &[&[u8]]) -> PathBuf {
    let files = folder.join("saved");
    write(&files.join("c0ffee.json"), config);
    let mut paths = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let path = files.join(format!("layer{number}/layer.tar"));
        match layers[..number].iter().position(|other| other == layer) {
            Some(same) => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(format!("../layer{same}/layer.tar"), &path).unwrap();
            }
            None => write(&path, layer),
        }
        paths.push(format!("layer{number}/layer.tar"));
    }
    let list = json!([{"Config": "c0ffee.json", "RepoTags": names, "Layers": paths}]);
    write(&files.join("manifest.json"), list.to_string().as_bytes());
    tar(&files, &folder.join("saved.tar"))
}

/// Makes a tar file of a folder.
pub fn tar(folder: &Path, file: &Path) -> PathBuf {
    let status = std::process::Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(file).arg(".").status();
    assert!(status.unwrap().success());
    file.to_owned()
}

pub fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

pub fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap()
}
