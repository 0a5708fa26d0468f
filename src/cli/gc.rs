//! `roadstead gc`: removes unreferenced content now.

use std::sync::Arc;

use clap::Args;
use parking_lot::Mutex;
use serde_json::json;

use super::options::ConfigOptions;
use super::output::{Output, ProgressLine, bytes, print, print_json};
use super::session::{Session, reconcile};
use super::{CliError, runtime};
use crate::config::Config;
use crate::control::gc::{GcEvent, GcRequest, GcSummary, gc};

#[derive(Args, Debug)]
pub struct Gc {
    /// Remove nothing, and print what would be removed.
    #[arg(long)]
    dry_run: bool,

    /// Output format. With json, each event is a JSON object on a line.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,

    #[command(flatten)]
    options: ConfigOptions,
}

// === impl Gc ===

impl Gc {
    pub(super) fn run(self) -> Result<(), CliError> {
        let config = self.options.load()?;
        let progress = Arc::new(Mutex::new(ProgressLine::new(self.output)));
        let summary = runtime::block_on(collect(&config, self.dry_run, progress.clone()))??;
        progress.lock().clear();
        match self.output {
            Output::Json => print_json(&json!(GcEvent::Done(summary)).to_string()),
            Output::Text => print(&text(&summary, self.dry_run)),
        }?;
        if summary.complete { Ok(()) } else { Err(CliError::Unfinished) }
    }
}

async fn collect(config: &Config, dry_run: bool, progress: Arc<Mutex<ProgressLine>>) -> Result<GcSummary, CliError> {
    let draw = move |repositories| progress.lock().draw(|| format!("{repositories} repositories"));
    match Session::open(config).await? {
        Session::Server(mut server) => {
            let mut summary = None;
            let each = |event| {
                match event {
                    GcEvent::Progress { repositories } => draw(repositories),
                    GcEvent::Done(done) => summary = Some(done),
                }
                Ok(())
            };
            server.lines("gc", &GcRequest { dry_run }, each).await?;
            summary.ok_or(CliError::Unfinished)
        }
        Session::Folder(store) => {
            // The collector relies on the index, so it must agree with the files first.
            reconcile(&store).await?;
            let collected = gc(store.clone(), config, !dry_run, move |event| {
                if let GcEvent::Progress { repositories } = event {
                    draw(repositories);
                }
                true
            });
            let collected = collected.await;
            store.close().await;
            Ok(collected?)
        }
    }
}

fn text(summary: &GcSummary, dry_run: bool) -> String {
    let GcSummary { collected, swept, removed, .. } = summary;
    let would = if *removed { "" } else { "would be " };
    let size = bytes(collected.bytes);
    let mut text = format!(
        "{would}removed: {} files ({size}), {} blobs of repositories that no manifest refers to, {} untagged manifests; \
         {} more are unreferenced and wait for their grace period\n",
        collected.files, collected.members, collected.manifests, collected.waiting,
    );
    if *removed {
        text.push_str(&format!(
            "unneeded names of mirrored repositories: {} tags, {} links, {} repositories\n",
            swept.tags, swept.links, swept.repositories,
        ));
    } else if !dry_run {
        text.push_str("nothing was removed: the server has not run for gc.after_start yet; run gc again later\n");
    }
    text
}
