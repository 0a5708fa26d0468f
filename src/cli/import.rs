//! `roadstead import`: takes over images from the folder of another registry, or from image files.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use parking_lot::Mutex;
use serde_json::json;

use super::client::Client;
use super::options::ConfigOptions;
use super::output::{Output, ProgressLine, bytes, print, print_json};
use super::session::Session;
use super::{CliError, runtime};
use crate::config::Config;
use crate::control::import::{ImportRequest, PreparedImport, import, prepare};
use crate::events::Events;
use crate::import::{ImportEvent, ImportSummary, LeftOut};
use crate::printable::Printable;
use crate::store::Store;

/// The exit code if something of the source is not here.
const INCOMPLETE_EXIT_CODE: u8 = 1;

#[derive(Args, Debug)]
pub struct Import {
    /// The folder of a registry:2 or registry:3 (the one with docker/registry/v2), an OCI layout as a folder or tar file, or an
    /// archive of docker save. A running server reads it itself.
    #[arg(value_name = "DIR|FILE")]
    source: PathBuf,

    /// The source holds images of this upstream, such as docker.io, so they become cached content: needed for the folder of a
    /// pull-through cache. Without this option they become pushed content.
    #[arg(long, value_name = "UPSTREAM")]
    proxied: Option<String>,

    /// The repository for all images of a layout or archive, in place of their own names.
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,

    /// Write nothing, and print what would be imported. Content of blobs is not verified.
    #[arg(long)]
    dry_run: bool,

    /// Output format. With json, each event is a JSON object on a line.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,

    #[command(flatten)]
    options: ConfigOptions,
}

/// Prints events as they arrive.
struct Printer {
    output: Output,
    /// The data folder.
    data: PathBuf,
    progress: ProgressLine,
    summary: Option<ImportSummary>,
    failed: Option<CliError>,
}

// === impl Import ===

impl Import {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        runtime::set_umask();
        let config = self.options.load()?;
        // A running server has another working folder.
        let path = std::path::absolute(&self.source).map_err(|error| CliError::Import(error.to_string()))?;
        let (proxied, repository, dry_run) = (self.proxied, self.repository, self.dry_run);
        let request = ImportRequest { path, proxied, repository, dry_run };
        let progress = ProgressLine::new(self.output);
        let data = config.storage.path.clone();
        let printer = Printer { output: self.output, data, progress, summary: None, failed: None };
        let printer = Arc::new(Mutex::new(printer));
        runtime::block_on(run_import(&config, request, &printer))??;
        let mut printer = printer.lock();
        if let Some(error) = printer.failed.take() {
            return Err(error);
        }
        let summary = printer.summary.as_ref().ok_or(CliError::Unfinished)?;
        Ok(if summary.is_complete() { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE_EXIT_CODE) })
    }
}

async fn run_import(config: &Config, request: ImportRequest, printer: &Arc<Mutex<Printer>>) -> Result<(), CliError> {
    if request.dry_run {
        return try_import(config, request, printer).await;
    }
    match Session::open_to_add(config).await? {
        Session::Server(server) => ask_server(server, &request, printer).await,
        Session::Folder(store) => {
            let imported = match prepare_here(config, request).await {
                Ok(prepared) => import_here(Some(store.clone()), prepared, printer).await,
                Err(error) => Err(error),
            };
            store.close().await;
            imported
        }
    }
}

/// A dry run. Without a server, it does not change the data folder, which need not exist.
async fn try_import(config: &Config, request: ImportRequest, printer: &Arc<Mutex<Printer>>) -> Result<(), CliError> {
    let path = config.storage.path.clone();
    if let Some(server) = Client::connect(&path).await? {
        return ask_server(server, &request, printer).await;
    }
    let prepared = prepare_here(config, request).await?;
    let opening = path.clone();
    let open = move || opening.join("blobs").is_dir().then(|| Store::open_read_only(&opening, Events::default()));
    let opened = tokio::task::spawn_blocking(open).await.map_err(|error| CliError::Server(error.to_string()))?;
    let store = opened.transpose().map_err(|error| CliError::Folder { path, error })?;
    let imported = import_here(store.clone(), prepared, printer).await;
    if let Some(store) = store {
        store.close().await;
    }
    imported
}

async fn ask_server(
    mut server: Client,
    request: &ImportRequest,
    printer: &Arc<Mutex<Printer>>,
) -> Result<(), CliError> {
    let each = |event| match printer.lock().take(event) {
        true => Ok(()),
        false => Err(CliError::Unfinished),
    };
    server.lines("import", request, each).await
}

async fn prepare_here(config: &Config, request: ImportRequest) -> Result<PreparedImport, CliError> {
    let config = config.clone();
    let prepared = tokio::task::spawn_blocking(move || prepare(&config, &request)).await;
    prepared.map_err(|error| CliError::Server(error.to_string()))?.map_err(CliError::Import)
}

async fn import_here(
    store: Option<Store>,
    prepared: PreparedImport,
    printer: &Arc<Mutex<Printer>>,
) -> Result<(), CliError> {
    let sink = printer.clone();
    let summary = import(store, prepared, move |event| sink.lock().take(event)).await?;
    printer.lock().take(ImportEvent::Done(summary));
    Ok(())
}

// === impl Printer ===

impl Printer {
    /// Prints an event. Returns false if printing has failed.
    fn take(&mut self, event: ImportEvent) -> bool {
        let printed = match (self.output, &event) {
            (Output::Json, event) => print_json(&json!(event).to_string()),
            (Output::Text, ImportEvent::Progress(at)) => {
                self.progress.draw(|| {
                    let (repositories, manifests, blobs, copied) =
                        (at.repositories, at.manifests, at.blobs, bytes(at.bytes));
                    format!("{repositories} repositories, {manifests} manifests, {blobs} blobs ({copied})")
                });
                Ok(())
            }
            (Output::Text, event) => {
                self.progress.clear();
                print(&self.text(event))
            }
        };
        if let ImportEvent::Done(summary) = event {
            self.summary = Some(summary);
        }
        if let Err(error) = printed {
            self.failed = Some(error);
        }
        self.failed.is_none()
    }

    fn text(&self, event: &ImportEvent) -> String {
        match event {
            ImportEvent::Progress(_) => String::new(),
            ImportEvent::Repository(done) => {
                let (name, manifests, tags) = (Printable(&done.repository), done.manifests, done.tags);
                format!("{name}: {}, {}\n", counted(manifests, "manifest"), counted(tags, "tag"))
            }
            ImportEvent::Left(LeftOut { kind, name, reason, failed }) => {
                let verb = if *failed { "FAILED" } else { "left" };
                format!("{verb} {kind} {}: {}\n", Printable(name), Printable(reason))
            }
            ImportEvent::Done(summary) => summary_text(summary, &self.data),
        }
    }
}

fn summary_text(summary: &ImportSummary, data: &Path) -> String {
    let verb = if summary.dry_run { "would import" } else { "imported" };
    let mut text = format!(
        "{verb} from {}: {} ({} known), {} ({} known), {} with {} ({} known), in {} of {}\n",
        summary.source,
        counted(summary.manifests, "manifest"),
        summary.known_manifests,
        counted(summary.tags, "tag"),
        summary.known_tags,
        counted(summary.blobs, "blob"),
        bytes(summary.bytes),
        summary.known_blobs,
        plural(summary.repositories, "repository", "repositories"),
        Printable(&data.display().to_string()),
    );
    let unreferenced = format!(
        "{} that no imported manifest needs ({})",
        counted(summary.unreferenced_blobs, "blob"),
        bytes(summary.unreferenced_bytes)
    );
    let left = [
        (summary.unreferenced_blobs, unreferenced),
        (summary.uploads, counted(summary.uploads, "unfinished upload")),
        (summary.deleted_manifests, counted(summary.deleted_manifests, "deleted manifest or tag")),
        (summary.dangling_tags, counted(summary.dangling_tags, "tag") + " of deleted manifests"),
        (summary.kept_tags, counted(summary.kept_tags, "tag") + " with another manifest here"),
        (
            summary.empty_repositories,
            plural(summary.empty_repositories, "repository", "repositories") + " without manifests",
        ),
    ];
    let left: Vec<String> = left.into_iter().filter(|(count, _)| *count > 0).map(|(_, text)| text).collect();
    if !left.is_empty() {
        // Writing to a string does not fail, here and below.
        let _ = writeln!(text, "left in the source: {}", left.join(", "));
    }
    if summary.untagged_repositories > 0 {
        let untagged = plural(summary.untagged_repositories, "repository", "repositories");
        let _ = writeln!(text, "without tags, but imported: {untagged}");
    }
    if summary.sparse_indexes > 0 {
        let sparse = plural(summary.sparse_indexes, "index", "indexes");
        let _ = writeln!(text, "imported with some of their images, as in the source: {sparse}");
    }
    if summary.without_room > 0 {
        let (count, size) = (summary.without_room, bytes(summary.bytes_without_room));
        let _ = writeln!(
            text,
            "the cache has no room for {count} more blobs and manifests ({size}); raise cache.max_size and import again, or \
             let clients fetch them"
        );
    }
    if summary.hidden_images > 0 {
        let images = counted(summary.hidden_images, "image");
        let _ = writeln!(
            text,
            "clients that name docker.io get its images, not {images} of this import; list the names in [local] namespaces, \
             or import with --proxied docker.io"
        );
    }
    if summary.failed > 0 {
        let _ = writeln!(text, "not imported: see the {} above", counted(summary.failed, "line") + " with FAILED");
    }
    if let Some(reason) = &summary.stopped {
        let _ = writeln!(text, "stopped: {}; run the command again to continue", Printable(reason));
    }
    text
}

fn counted(count: u64, noun: &str) -> String {
    plural(count, noun, &format!("{noun}s"))
}

fn plural(count: u64, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}
