//! `roadstead du`: disk usage by upstream and repository.

use std::fmt::{self, Write};
use std::sync::Arc;

use clap::Args;
use parking_lot::Mutex;
use serde_json::json;

use super::options::ConfigOptions;
use super::output::{Output, ProgressLine, bytes, print, print_json};
use super::session::Session;
use super::{CliError, runtime};
use crate::config::Config;
use crate::control::usage::usage;
use crate::printable::Printable;
use crate::store::{Amount, DiskUsage, RepositoryUsage, ScopeUsage, StoredAmount, TotalUsage, UsageEvent};

#[derive(Args, Debug)]
pub struct Du {
    /// Output format.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,

    #[command(flatten)]
    options: ConfigOptions,
}

/// What has been received so far.
#[derive(Debug)]
struct Report {
    progress: ProgressLine,
    repositories: Vec<RepositoryUsage>,
    scopes: Vec<ScopeUsage>,
    total: Option<TotalUsage>,
    disk: Option<DiskUsage>,
}

// === impl Du ===

impl Du {
    pub(super) fn run(self) -> Result<(), CliError> {
        let config = self.options.load()?;
        let report = runtime::block_on(gather(&config, self.output))??;
        let mut report = report.lock();
        report.progress.clear();
        report.bound(&config);
        let Some(total) = report.total.take() else { return Err(CliError::Unfinished) };
        match self.output {
            Output::Text => print(&report.text(&total)),
            Output::Json => print_json(&format!(
                "{:#}",
                json!({ "total": total, "disk": report.disk, "scopes": report.scopes, "repositories": report.repositories })
            )),
        }
    }
}

async fn gather(config: &Config, output: Output) -> Result<Arc<Mutex<Report>>, CliError> {
    let report = Arc::new(Mutex::new(Report {
        progress: ProgressLine::new(output),
        repositories: Vec::new(),
        scopes: Vec::new(),
        total: None,
        disk: None,
    }));
    match Session::open(config).await? {
        Session::Server(mut server) => {
            let each = |event| {
                report.lock().take(event);
                Ok(())
            };
            server.lines("du", &json!({}), each).await?;
        }
        Session::Folder(store) => {
            let sink = report.clone();
            let walked = usage(store.clone(), move |event| {
                sink.lock().take(event);
                true
            });
            let walked = walked.await;
            store.close().await;
            walked?;
        }
    }
    Ok(report)
}

// === impl Report ===

impl Report {
    fn take(&mut self, event: UsageEvent) {
        match event {
            UsageEvent::Disk(disk) => self.disk = Some(disk),
            UsageEvent::Progress { repositories, blobs } => {
                self.progress.draw(|| format!("{repositories} repositories, {blobs} blobs"));
            }
            UsageEvent::Repository(repository) => self.repositories.push(repository),
            UsageEvent::Scope(scope) => self.scopes.push(scope),
            UsageEvent::Total(total) => self.total = Some(total),
        }
    }

    /// Adds the bounds that a server with this configuration would have, if none runs.
    fn bound(&mut self, config: &Config) {
        if let Some(disk) = &mut self.disk {
            let bytes = Some(disk.bytes);
            disk.max_size.get_or_insert_with(|| config.cache.max_size_on(bytes));
            disk.min_free.get_or_insert_with(|| config.cache.min_free_on(bytes));
        }
    }

    fn text(&self, total: &TotalUsage) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut text, total);
        text
    }

    fn write(&self, text: &mut String, total: &TotalUsage) -> fmt::Result {
        if !self.scopes.is_empty() {
            writeln!(text, "{:>11} {:>11} {:>10} {:>7}  content of", "own", "shared", "manifests", "tags")?;
        }
        for scope in &self.scopes {
            let all = if scope.repositories == 1 { "repository" } else { "repositories" };
            let name = format!("{} ({} {all})", Printable(&scope.scope), scope.repositories);
            row(text, &scope.content, scope.manifests, scope.tags, &name)?;
            let mut repositories: Vec<_> = self.repositories.iter().filter(|it| it.scope == scope.scope).collect();
            // The largest first. They arrive in the order of their names.
            repositories.sort_by_key(|it| std::cmp::Reverse(it.content.own_bytes + it.content.shared_bytes));
            for it in repositories {
                row(text, &it.content, it.manifests, it.tags, &format!("  {}", Printable(&it.repository)))?;
            }
        }
        if !self.scopes.is_empty() {
            writeln!(text)?;
        }
        sum(text, "cached", total.cached, "blob", "")?;
        sum(text, "pushed", total.pushed, "blob", "")?;
        sum(text, "unreferenced", total.unreferenced, "blob", "")?;
        sum(text, "names", total.names, "file", ", at 4 KiB each")?;
        sum(text, "uploads", total.uploads, "file", "")?;
        sum(text, "spool", total.spool, "file", "")?;
        sum(text, "quarantine", total.quarantine, "file", "")?;
        sum(text, "index", total.index, "file", "")?;
        writeln!(text, "{:>11}  total", bytes(total.bytes))?;
        self.disk.as_ref().map_or(Ok(()), |disk| write_disk(text, disk))
    }
}

fn write_disk(text: &mut String, disk: &DiskUsage) -> fmt::Result {
    let DiskUsage { bytes: all, free_bytes, inodes, free_inodes, min_free_inodes, .. } = *disk;
    writeln!(text)?;
    writeln!(text, "{:>11}  cache.max_size", bytes(disk.max_size.unwrap_or_default()))?;
    writeln!(text, "{:>11}  cache.min_free", bytes(disk.min_free.unwrap_or_default()))?;
    writeln!(text, "{:>11}  free on the disk, of {}", bytes(free_bytes), bytes(all))?;
    if inodes == 0 {
        return Ok(());
    }
    writeln!(text, "{free_inodes:>11}  free inodes, of {inodes}; {min_free_inodes} stay free")
}

fn row(text: &mut String, content: &StoredAmount, manifests: u64, tags: u64, name: &str) -> fmt::Result {
    let (own, shared) = (bytes(content.own_bytes), bytes(content.shared_bytes));
    writeln!(text, "{own:>11} {shared:>11} {manifests:>10} {tags:>7}  {name}")
}

fn sum(text: &mut String, name: &str, amount: Amount, unit: &str, remark: &str) -> fmt::Result {
    let plural = if amount.files == 1 { "" } else { "s" };
    writeln!(text, "{:>11}  {name} ({} {unit}{plural}{remark})", bytes(amount.bytes), amount.files)
}
