//! Recognises what is at a path.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder::Folder;
use super::registry::{PROXY_STATE, ROOT, Registry};
use super::tar::{TarError, TarIndex};
use super::tree::Tree;
use super::{docker_archive, layout};

/// Why a path cannot be imported. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot read {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("cannot read {}: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{} is compressed; run `{program}` first, and import the result", path.display())]
    Compressed { path: PathBuf, program: &'static str },
    #[error(
        "{} is not the folder of a registry (docker/registry/v2), an OCI layout (index.json) or an archive of docker save \
         (manifest.json); name the folder or file that has them",
        .0.display()
    )]
    Unknown(PathBuf),
    #[error(
        "{} is the folder of a pull-through cache (it has {PROXY_STATE}); name its upstream with --proxied, such as --proxied \
         docker.io",
        .0.display()
    )]
    Proxy(PathBuf),
}

/// Something to import.
#[derive(Debug)]
pub struct Source(pub(super) Format);

#[derive(Debug)]
pub(super) enum Format {
    Registry(Arc<Registry>),
    Layout(Arc<Tree>),
    DockerArchive(Arc<Tree>),
}

/// The first bytes of compressed files, and the program that decompresses them.
const COMPRESSED: [(&[u8], &str); 4] =
    [(b"\x1f\x8b", "gunzip"), (b"\x28\xb5\x2f\xfd", "zstd -d"), (b"\xfd7zXZ", "xz -d"), (b"BZh", "bunzip2")];

impl Source {
    /// Opens the folder or file at `path`. `is_proxied` says that the operator has named an upstream. Blocks.
    ///
    /// # Errors
    /// If it cannot be read or is none of the known formats, or if the upstream must be named.
    pub fn open(path: &Path, is_proxied: bool) -> Result<Self, SourceError> {
        let failed = |error| SourceError::Io { path: path.to_owned(), error };
        let found = fs::metadata(path).map_err(failed)?;
        if found.is_dir() {
            let folder = Folder::open(path).map_err(failed)?;
            if let Some(registry) = folder.folder(ROOT).map_err(failed)? {
                if !is_proxied && folder.length(&format!("./{PROXY_STATE}")).map_err(failed)?.is_some() {
                    return Err(SourceError::Proxy(path.to_owned()));
                }
                return Ok(Self(Format::Registry(Arc::new(Registry::new(registry)))));
            }
            return Self::of_tree(path, Tree::Folder(folder));
        }
        // Opening a pipe would wait for its other end.
        if !found.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file or a folder")));
        }
        let file = File::open(path).map_err(failed)?;
        if let Some(program) = decompressor(&file).map_err(failed)? {
            return Err(SourceError::Compressed { path: path.to_owned(), program });
        }
        let index = TarIndex::read(file).map_err(|error| match error {
            TarError::NotTar => SourceError::Unknown(path.to_owned()),
            error => SourceError::Damaged { path: path.to_owned(), reason: error.to_string() },
        })?;
        Self::of_tree(path, Tree::Archive(index))
    }

    /// Whether it is the folder of a registry, which has repositories of its own.
    pub fn is_registry(&self) -> bool {
        matches!(self.0, Format::Registry(_))
    }

    /// What the source is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self.0 {
            Format::Registry(_) => "registry",
            Format::Layout(_) => "OCI layout",
            Format::DockerArchive(_) => "docker save",
        }
    }

    fn of_tree(path: &Path, tree: Tree) -> Result<Self, SourceError> {
        let has = |name: &str| {
            let found = tree.file(name).map_err(|error| SourceError::Io { path: path.join(name), error });
            found.map(|found| found.is_some())
        };
        // Docker 25 and newer write both. The layout has the manifests.
        let (is_layout, is_docker_archive) = (has(layout::INDEX)?, has(docker_archive::LIST)?);
        let tree = Arc::new(tree);
        match (is_layout, is_docker_archive) {
            (true, _) => Ok(Self(Format::Layout(tree))),
            (false, true) => Ok(Self(Format::DockerArchive(tree))),
            (false, false) => Err(SourceError::Unknown(path.to_owned())),
        }
    }
}

/// The program that decompresses a file; `None` if the file is not compressed.
fn decompressor(mut file: &File) -> io::Result<Option<&'static str>> {
    use std::io::Seek;
    let mut begin = Vec::new();
    file.take(8).read_to_end(&mut begin)?;
    file.rewind()?;
    Ok(COMPRESSED.iter().find(|(magic, _)| begin.starts_with(magic)).map(|(_, program)| *program))
}
