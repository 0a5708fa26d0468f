//! `roadstead scrub`: reads all content and names, and reports corrupt or missing content.

use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use parking_lot::Mutex;
use serde_json::json;

use super::options::ConfigOptions;
use super::output::{Output, ProgressLine, bar, bytes, print, print_json};
use super::session::Session;
use super::{CliError, runtime};
use crate::config::Config;
use crate::control::scrub::{ScrubEvent, ScrubRequest, ScrubSummary, scrub};
use crate::printable::Printable;
use crate::store::{Class, Finding, Problem};

/// The exit code if content or a name is corrupt or missing.
const DAMAGED_EXIT_CODE: u8 = 1;

#[derive(Args, Debug)]
pub struct Scrub {
    /// Move corrupt files to quarantine/. Cached content is fetched again by the next pull; pushed content must be pushed again.
    #[arg(long)]
    repair: bool,

    /// Output format. With json, each event is a JSON object on a line.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,

    #[command(flatten)]
    options: ConfigOptions,
}

/// Prints events as they arrive.
struct Printer {
    output: Output,
    progress: ProgressLine,
    summary: Option<ScrubSummary>,
    failed: Option<CliError>,
}

// === impl Scrub ===

impl Scrub {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let scrubbed = self.scrub();
        let summary = scrubbed.map_err(|error| CliError::ScrubFailed(Box::new(error)))?;
        Ok(if summary.damaged() == 0 { ExitCode::SUCCESS } else { ExitCode::from(DAMAGED_EXIT_CODE) })
    }

    fn scrub(self) -> Result<ScrubSummary, CliError> {
        let config = self.options.load()?;
        let printer = Arc::new(Mutex::new(Printer {
            output: self.output,
            progress: ProgressLine::new(self.output),
            summary: None,
            failed: None,
        }));
        runtime::block_on(run_scrub(&config, self.repair, &printer))??;
        let mut printer = printer.lock();
        if let Some(error) = printer.failed.take() {
            return Err(error);
        }
        printer.summary.filter(|summary| summary.complete).ok_or(CliError::Unfinished)
    }
}

async fn run_scrub(config: &Config, repair: bool, printer: &Arc<Mutex<Printer>>) -> Result<(), CliError> {
    match Session::open(config).await? {
        Session::Server(mut server) => {
            let each = |event| match printer.lock().take(event) {
                true => Ok(()),
                false => Err(CliError::Unfinished),
            };
            server.lines("scrub", &ScrubRequest { repair }, each).await
        }
        Session::Folder(store) => {
            let sink = printer.clone();
            let scrubbed = scrub(store.clone(), repair, None, move |event| sink.lock().take(event)).await;
            store.close().await;
            printer.lock().take(ScrubEvent::Done(scrubbed?));
            Ok(())
        }
    }
}

// === impl Printer ===

impl Printer {
    /// Prints an event. Returns false if printing has failed.
    fn take(&mut self, event: ScrubEvent) -> bool {
        if let ScrubEvent::Done(summary) = &event {
            self.summary = Some(*summary);
        }
        let printed = match (self.output, &event) {
            (Output::Json, event) => print_json(&json!(event).to_string()),
            (Output::Text, ScrubEvent::Progress(at)) => {
                self.progress.draw(|| {
                    let (names, blobs, read) = (at.names, at.blobs, bytes(at.bytes));
                    format!("{} {names} names, {blobs} blobs, {read}", bar(at.per_mille))
                });
                Ok(())
            }
            (Output::Text, ScrubEvent::Found(finding)) => {
                self.progress.clear();
                print(&finding_text(finding))
            }
            (Output::Text, ScrubEvent::Done(summary)) => {
                self.progress.clear();
                print(&summary_text(summary))
            }
        };
        if let Err(error) = printed {
            self.failed = Some(error);
        }
        self.failed.is_none()
    }
}

/// Returns one line with the content, the problem, the repositories and the consequence.
fn finding_text(finding: &Finding) -> String {
    let problem = match finding.problem {
        Problem::Length => "damaged: wrong length",
        Problem::Digest => "damaged: wrong digest",
        Problem::Unreadable => "damaged: cannot be read",
        Problem::Missing => "missing",
        Problem::Name => "damaged: its name file is corrupt",
        Problem::Incomplete => "was deleted, but a manifest refers to it",
        Problem::Dangling => "was deleted, but a tag points to it",
    };
    let what = match (&finding.tag, &finding.digest) {
        (Some(tag), Some(digest)) => format!("{} ({})", Printable(digest), Printable(tag)),
        (Some(tag), None) => format!("tag {}", Printable(tag)),
        (None, digest) => digest.as_deref().map(|digest| Printable(digest).to_string()).unwrap_or_default(),
    };
    let class = finding.class.as_str();
    let mut text = format!("{class} {what} {problem}");
    if !finding.repositories.is_empty() {
        let _ = write!(text, "; in {}", Printable(&finding.repositories.join(", ")));
    }
    if finding.quarantined {
        text.push_str("; moved to quarantine/");
    }
    if finding.problem.is_damage() && finding.class == Class::Pushed {
        text.push_str("; LOST unless it is pushed again");
    }
    text.push('\n');
    text
}

fn summary_text(summary: &ScrubSummary) -> String {
    let ScrubSummary { names, blobs, damaged_cached, damaged_pushed, quarantined, .. } = summary;
    let read = bytes(summary.bytes);
    let mut text = format!("read {names} names and {blobs} blobs ({read})");
    if summary.damaged() == 0 {
        text.push_str("; nothing is damaged");
    } else {
        let _ = write!(text, "; damaged: {damaged_cached} cached, {damaged_pushed} pushed");
        let _ = match quarantined {
            0 => write!(text, "; nothing was moved (use --repair)"),
            moved => write!(text, "; {moved} moved to quarantine/"),
        };
    }
    text.push('\n');
    text
}
