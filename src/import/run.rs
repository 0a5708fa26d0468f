//! The order of an import: repository by repository, and then what the source has beyond them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::runtime::Handle;

use super::destination::Destinations;
use super::docker_archive::DockerArchive;
use super::layout::{LayoutContent, SourceImages, group};
use super::manifests::{Importer, Outcome, SourceContent, Stop};
use super::registry::{Registry, RegistryRepository, TagLink};
use super::report::{ImportEvent, ImportSummary, ImportedRepository, Report};
use super::source::{Format, Source};
use crate::oci::{Digest, RepoId, RepoName};
use crate::store::Store;

/// The choices of the operator.
#[derive(Debug)]
pub struct ImportOptions {
    pub destinations: Destinations,
    /// Write nothing.
    pub dry_run: bool,
    /// How old the confirmation of a mirrored tag is at least.
    pub unconfirmed: Duration,
}

/// One import.
struct Run<'a, 'r> {
    store: Option<&'a Store>,
    options: &'a ImportOptions,
    stop: &'a AtomicBool,
    report: &'a mut Report<'r>,
    needed: HashSet<u64>,
    planned: HashSet<u64>,
}

/// Imports all of a source, until the end or until `stop` is set. Calls `sink` with what happens; if it returns false, the
/// import ends. `store` may be absent in a dry run. Blocks; must be called on the blocking pool of a runtime.
pub fn import(
    source: &Source,
    store: Option<&Store>,
    options: &ImportOptions,
    stop: &AtomicBool,
    sink: &mut (dyn FnMut(ImportEvent) -> bool + Send),
) -> ImportSummary {
    let summary =
        ImportSummary { source: source.kind().to_owned(), dry_run: options.dry_run, ..ImportSummary::default() };
    let mut report = Report::new(sink, summary);
    let mut run = Run { store, options, stop, report: &mut report, needed: HashSet::new(), planned: HashSet::new() };
    let ended = match &source.0 {
        Format::Registry(registry) => run.registry(registry),
        Format::Layout(tree) => {
            let content = LayoutContent(tree.clone());
            let images = content.images(run.report);
            run.images(images, &content)
        }
        Format::DockerArchive(tree) => match DockerArchive::read(tree.clone(), run.report) {
            Ok((content, images)) => run.images(Ok(images), &content),
            Err(reason) => run.unreadable(reason),
        },
    };
    report.summary.stopped = match ended {
        Ok(()) => None,
        Err(Stop::Cancelled) => Some("it was interrupted".to_owned()),
        Err(Stop::Store(error)) => Some(match error.obstacle() {
            Some(obstacle) => format!("{obstacle} ({error})"),
            None => error.to_string(),
        }),
    };
    report.summary
}

impl Run<'_, '_> {
    fn registry(&mut self, registry: &Arc<Registry>) -> Result<(), Stop> {
        let mut unreadable = Vec::new();
        registry.for_each_repository(&mut |name| self.registry_repository(registry, name), &mut |name, error| {
            unreadable.push((name, error))
        })?;
        for (name, error) in unreadable {
            let name = if name.is_empty() { "repositories".to_owned() } else { name };
            self.report.failed("repository", name, format!("it cannot be read: {error}"));
        }
        match registry.unreferenced(&self.needed, self.stop) {
            Ok((count, bytes)) => {
                (self.report.summary.unreferenced_blobs, self.report.summary.unreferenced_bytes) = (count, bytes);
            }
            Err(error) => self.report.failed("repository", "blobs".to_owned(), format!("it cannot be read: {error}")),
        }
        Ok(())
    }

    fn registry_repository(&mut self, registry: &Arc<Registry>, name: String) -> Result<(), Stop> {
        let repo = name.parse::<RepoName>().map_err(|error| error.to_string());
        let repo = match repo.and_then(|name| self.options.destinations.of_repository(&name)) {
            Ok(repo) => repo,
            Err(reason) => {
                self.report.failed("repository", name, reason);
                return Ok(());
            }
        };
        let listing = match registry.list(&name) {
            Ok(listing) => listing,
            Err(error) => {
                self.report.failed("repository", name, format!("it cannot be read: {error}"));
                return Ok(());
            }
        };
        self.report.summary.uploads += listing.uploads;
        self.report.summary.deleted_manifests += listing.deleted;
        for (name, reason) in listing.damaged {
            self.report.failed("link", name, reason);
        }
        if listing.manifests.is_empty() && listing.tags.is_empty() {
            self.report.summary.empty_repositories += 1;
            return Ok(());
        }
        let content = RegistryRepository { registry: registry.clone(), name };
        self.repository(repo, &content, &listing.manifests, &listing.tags)
    }

    fn images(&mut self, images: Result<SourceImages, String>, content: &dyn SourceContent) -> Result<(), Stop> {
        let images = match images {
            Ok(images) => images,
            Err(reason) => return self.unreadable(reason),
        };
        for (repo, group) in group(images, content, &self.options.destinations, self.report) {
            let roots: Vec<Digest> = group.roots.into_iter().collect();
            let tags: Vec<TagLink> = group.tags.into_values().collect();
            self.repository(repo, content, &roots, &tags)?;
        }
        Ok(())
    }

    fn unreadable(&mut self, reason: String) -> Result<(), Stop> {
        self.report.failed("image", "all".to_owned(), reason);
        Ok(())
    }

    fn repository(
        &mut self,
        repo: RepoId,
        content: &dyn SourceContent,
        manifests: &[Digest],
        tags: &[TagLink],
    ) -> Result<(), Stop> {
        if let Some(reason) = self.rival(&repo)? {
            self.report.failed("repository", repo.to_string(), reason);
            return Ok(());
        }
        let mut importer = Importer {
            repo: repo.clone(),
            content,
            store: self.store,
            dry_run: self.options.dry_run,
            stop: self.stop,
            report: self.report,
            needed: &mut self.needed,
            planned: &mut self.planned,
            manifests: HashMap::new(),
            blobs: HashMap::new(),
        };
        for digest in manifests {
            if importer.manifest(digest, 0)? == Outcome::Absent {
                importer.report.failed("manifest", importer.name_of(digest), "it is not in the source");
            }
        }
        let tagged = importer.tags(tags, self.options.unconfirmed)?;
        let manifests = importer.manifests.values().filter(|outcome| **outcome == Outcome::Present).count() as u64;
        if manifests == 0 {
            // Blobs without a manifest wait for the collector. A client may be pushing an image that needs them.
            return Ok(());
        }
        self.report.summary.repositories += 1;
        self.report.summary.untagged_repositories += u64::from(tags.is_empty());
        self.report.repository(ImportedRepository { repository: repo.to_string(), manifests, tags: tagged });
        Ok(())
    }

    /// Why the name cannot become local: the default upstream has a cached repository of that name, as for a push.
    fn rival(&self, repo: &RepoId) -> Result<Option<String>, Stop> {
        let (Some(store), Some(rival)) = (self.store, self.options.destinations.rival(repo)) else { return Ok(None) };
        let is_taken = !store.is_local(&repo.name) && Handle::current().block_on(store.repository_exists(&rival))?;
        Ok(is_taken.then(|| {
            format!(
                "images of {rival} are cached here under this name; list it in [local] namespaces, and import again"
            )
        }))
    }
}
