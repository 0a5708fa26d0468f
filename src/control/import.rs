//! `import`: takes over images from the folder of another registry, or from image files. The files are read by this process,
//! so a running server needs the permission to read them.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use super::lines::Event;
use crate::config::Config;
use crate::import::{Destinations, ImportEvent, ImportOptions, ImportSummary, Source, import as run};
use crate::pull::MAX_SCARCE_TTL;
use crate::resolve::Routes;
use crate::store::{Store, StoreError};

/// The request of `POST /v1/import`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// The folder or file, as an absolute path.
    pub path: PathBuf,
    /// The upstream whose cached content it is; `None` for pushed content.
    pub proxied: Option<String>,
    /// The repository for the images of a layout or archive; `None`: their own names.
    pub repository: Option<String>,
    /// Write nothing, and report what would be imported.
    pub dry_run: bool,
}

/// An import that can be started.
#[derive(Debug)]
pub struct PreparedImport {
    source: Source,
    options: ImportOptions,
}

impl Event for ImportEvent {
    fn is_progress(&self) -> bool {
        matches!(self, Self::Progress(_))
    }
}

/// Opens the source and checks the request. Blocks.
///
/// # Errors
/// A line that says what is wrong and what to do.
pub fn prepare(config: &Config, request: &ImportRequest) -> Result<PreparedImport, String> {
    let (proxied, repository) = (request.proxied.as_deref(), request.repository.as_deref());
    let destinations =
        Destinations::new(Routes::new(config), proxied, repository).map_err(|error| error.to_string())?;
    let source = Source::open(&request.path, proxied.is_some()).map_err(|error| error.to_string())?;
    if source.is_registry() && repository.is_some() {
        return Err(
            "--repository is for layouts and archives: the repositories of a registry keep their names".to_owned()
        );
    }
    let cache = &config.cache;
    let unconfirmed = cache.tag_ttl.max(MAX_SCARCE_TTL).saturating_add(cache.stale_while_revalidate);
    Ok(PreparedImport { source, options: ImportOptions { destinations, dry_run: request.dry_run, unconfirmed } })
}

/// Runs the import. Calls `sink` with what happens, on a blocking thread. If it returns false, the import ends. Without a
/// store, nothing counts as imported before; this is for a dry run without a data folder.
///
/// # Errors
/// [`StoreError::ReadOnly`] for a read-only folder, unless it is a dry run. Other failures of the store are in the summary,
/// because what was imported before stays.
pub async fn import(
    store: Option<Store>,
    prepared: PreparedImport,
    mut sink: impl FnMut(ImportEvent) -> bool + Send + 'static,
) -> Result<ImportSummary, StoreError> {
    let PreparedImport { source, options } = prepared;
    let Some(store) = store else {
        let work = move || run(&source, None, &options, &AtomicBool::new(false), &mut sink);
        return tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Task);
    };
    if store.is_read_only() && !options.dry_run {
        return Err(StoreError::ReadOnly);
    }
    store.walk(move |store, stop| Ok(run(&source, Some(store), &options, stop, &mut sink))).await
}
