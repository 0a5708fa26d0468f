//! An OCI image layout (image-spec, image-layout.md), and the images of a layout or an archive by repository.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::Deserialize;

use super::destination::Destinations;
use super::image_name::ImageName;
use super::manifests::SourceContent;
use super::registry::TagLink;
use super::report::Report;
use super::tree::{Part, Tree};
use crate::oci::{Digest, Manifest, RepoId, Tag};

/// The file that lists the images.
pub(super) const INDEX: &str = "index.json";
/// The full name of an image; Docker, containerd and BuildKit write it.
const FULL_NAME: &str = "io.containerd.image.name";
/// The tag of an image, or its full name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const NO_NAME: &str = "it has no name; choose one with --repository";

/// The images of a layout or an archive.
#[derive(Debug)]
pub(super) struct SourceImages {
    pub(super) images: Vec<NamedImage>,
    /// When the list of images was written.
    pub(super) saved: Option<SystemTime>,
}

/// An image in a layout or an archive.
#[derive(Debug)]
pub(super) struct NamedImage {
    pub(super) digest: Digest,
    pub(super) name: Naming,
}

#[derive(Debug)]
pub(super) enum Naming {
    Full(ImageName),
    /// A tag without a repository.
    Tag(Tag),
    Nothing,
}

/// The images for one repository.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) roots: BTreeSet<Digest>,
    pub(super) tags: BTreeMap<Tag, TagLink>,
}

/// The blobs of a layout.
#[derive(Debug)]
pub(super) struct LayoutContent(pub(super) Arc<Tree>);

#[derive(Deserialize)]
struct IndexJson {
    #[serde(default)]
    manifests: Option<Vec<DescriptorJson>>,
}

#[derive(Deserialize)]
struct DescriptorJson {
    digest: String,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

impl LayoutContent {
    /// The images that the layout lists. Those whose digest or name cannot be used are reported.
    ///
    /// # Errors
    /// If the list cannot be read.
    pub(super) fn images(&self, report: &mut Report<'_>) -> Result<SourceImages, String> {
        let (text, saved) = read_list(&self.0, INDEX)?;
        let index: IndexJson = serde_json::from_slice(&text).map_err(|error| format!("{INDEX}: {error}"))?;
        let mut images = Vec::new();
        for DescriptorJson { digest, annotations } in index.manifests.unwrap_or_default() {
            let annotation = |key: &str| annotations.as_ref().and_then(|all| all.get(key));
            let name = match (annotation(FULL_NAME), annotation(REF_NAME)) {
                (Some(full), _) => ImageName::parse(full).map(Naming::Full),
                (None, Some(name)) if name.contains(['/', ':']) => ImageName::parse(name).map(Naming::Full),
                (None, Some(name)) => name.parse().ok().map(Naming::Tag),
                (None, None) => Some(Naming::Nothing),
            };
            match (digest.parse(), name) {
                (Ok(digest), Some(name)) => images.push(NamedImage { digest, name }),
                (Err(error), _) => report.failed("image", digest, format!("{error}")),
                (_, None) => report.failed("image", digest, "its name or tag is not valid"),
            }
        }
        Ok(SourceImages { images, saved })
    }
}

/// The list of images, and when it was written.
pub(super) fn read_list(tree: &Tree, name: &str) -> Result<(Bytes, Option<SystemTime>), String> {
    let read = || {
        let Some(part) = tree.file(name)? else { return Err(io::ErrorKind::NotFound.into()) };
        Ok::<_, io::Error>((part.read(Manifest::MAX_LENGTH)?, part.modified()))
    };
    read().map_err(|error| format!("{name}: {error}"))
}

impl SourceContent for LayoutContent {
    fn manifest(&self, digest: &Digest) -> io::Result<Option<Bytes>> {
        self.0.read(&path(digest), Manifest::MAX_LENGTH)
    }

    fn blob(&self, digest: &Digest) -> io::Result<Option<Part>> {
        self.0.file(&path(digest))
    }
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// Groups images by the repositories that they belong in. What has no name belongs to the image that it refers to as its
/// subject, as signatures do. Whatever has no place is reported.
pub(super) fn group(
    SourceImages { images, saved }: SourceImages,
    content: &dyn SourceContent,
    destinations: &Destinations,
    report: &mut Report<'_>,
) -> BTreeMap<RepoId, Group> {
    let mut groups: BTreeMap<RepoId, Group> = BTreeMap::new();
    let mut unnamed = Vec::new();
    for NamedImage { digest, name } in images {
        let shown = shown(&name, &digest);
        let (repos, tag) = match &name {
            Naming::Full(image) => (destinations.of_image(image), image.tag.clone()),
            Naming::Tag(tag) => (chosen(destinations), Some(tag.clone())),
            Naming::Nothing if destinations.names_repository() => (chosen(destinations), None),
            Naming::Nothing => {
                unnamed.push(digest);
                continue;
            }
        };
        let repos = match repos {
            Ok(repos) => repos,
            Err(reason) => {
                report.failed("image", shown, reason);
                continue;
            }
        };
        if let (Naming::Full(image), Some(repo), false) = (&name, repos.first(), destinations.names_repository())
            && destinations.is_hidden(image, repo)
        {
            report.summary.hidden_images += 1;
        }
        for repo in repos {
            if !groups.entry(repo).or_default().add(digest.clone(), tag.clone(), saved) {
                report.failed("image", shown.clone(), "another image of the source has the same name and tag");
            }
        }
    }
    attach(&mut groups, unnamed, content, report);
    groups
}

fn chosen(destinations: &Destinations) -> Result<Vec<RepoId>, String> {
    if !destinations.names_repository() {
        return Err(NO_NAME.to_owned());
    }
    // The name of the image does not matter then.
    destinations.of_image(&ImageName::parse("any").ok_or(NO_NAME)?)
}

fn shown(name: &Naming, digest: &Digest) -> String {
    match name {
        Naming::Full(image) => {
            let tag = image.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
            format!("{}/{}{tag}", image.host, image.path)
        }
        Naming::Tag(tag) => format!("{tag} ({digest})"),
        Naming::Nothing => digest.to_string(),
    }
}

impl Group {
    /// False if the tag is that of another image.
    fn add(&mut self, digest: Digest, tag: Option<Tag>, at: Option<SystemTime>) -> bool {
        if let Some(tag) = tag {
            if let Some(known) = self.tags.get(&tag) {
                return known.digest == digest;
            }
            self.tags.insert(tag.clone(), TagLink { tag, digest: digest.clone(), at, confirmed: None });
        }
        self.roots.insert(digest);
        true
    }
}

/// Adds manifests without a name to the groups that have their subjects.
fn attach(
    groups: &mut BTreeMap<RepoId, Group>,
    unnamed: Vec<Digest>,
    content: &dyn SourceContent,
    report: &mut Report<'_>,
) {
    let mut waiting: HashMap<Digest, Vec<Digest>> = HashMap::new();
    let mut attached: HashSet<Digest> = HashSet::new();
    for digest in &unnamed {
        if let Some(subject) = parsed(content, digest).and_then(|manifest| manifest.subject) {
            waiting.entry(subject).or_default().push(digest.clone());
        }
    }
    for group in groups.values_mut() {
        let (mut pending, mut seen): (Vec<Digest>, _) = (group.roots.iter().cloned().collect(), HashSet::new());
        while let Some(digest) = pending.pop() {
            if !seen.insert(digest.clone()) {
                continue;
            }
            for referrer in waiting.get(&digest).into_iter().flatten() {
                attached.insert(referrer.clone());
                group.roots.insert(referrer.clone());
                pending.push(referrer.clone());
            }
            let children = parsed(content, &digest).unwrap_or_default().children;
            pending.extend(children.into_iter().filter(|child| child.is_manifest).map(|child| child.digest));
        }
    }
    for digest in unnamed.into_iter().filter(|digest| !attached.contains(digest)) {
        report.failed("image", digest.to_string(), NO_NAME);
    }
}

/// A manifest that may be damaged: its digest is verified when it is copied.
fn parsed(content: &dyn SourceContent, digest: &Digest) -> Option<Manifest> {
    let bytes = content.manifest(digest).ok()??;
    Manifest::parse(&bytes).ok()
}
