//! The facts for people.

use std::fmt::Write;

use crate::cli::output::bytes;
use crate::control::explain::{Facts, Kind, Node};
use crate::upstream::BreakerState;

/// Requests that are listed one by one; of more, only the number is of use.
const LISTED: usize = 8;

pub(super) fn render(facts: &Facts) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut text, facts);
    text
}

fn write_all(text: &mut String, facts: &Facts) -> std::fmt::Result {
    writeln!(text, "image       {}", facts.image)?;
    writeln!(text, "rule        {}", facts.rule)?;
    if facts.scope == "local" {
        writeln!(text, "scope       local: what is pushed here")?;
    } else {
        let credentials = match facts.credentials {
            Some(true) => "with credentials",
            Some(false) => "anonymously",
            None => "with Docker's login, if there is one",
        };
        writeln!(text, "scope       mirrored from {} ({credentials}), as {}", facts.urls.join(", "), facts.repository)?;
    }
    match facts.breaker {
        Some(BreakerState::Open { for_seconds, next_probe_in_seconds }) => {
            let probe = format!("asked whether it is back in {next_probe_in_seconds} s");
            writeln!(text, "upstream    left alone for {for_seconds} s, after failures; {probe}")?;
        }
        Some(BreakerState::Closed { failures }) if failures > 0 => {
            writeln!(text, "upstream    failed {failures} times in a row")?;
        }
        Some(BreakerState::Closed { .. }) | None => {}
    }
    let missing = if facts.data_exists { "" } else { " (which does not exist)" };
    writeln!(text, "data        {}{missing}", facts.data)?;
    match &facts.tag {
        Some(tag) => {
            let state = if facts.scope == "local" {
                "pushed"
            } else if tag.fresh {
                "fresh, confirmed"
            } else {
                "to be confirmed again, last confirmed"
            };
            writeln!(text, "tag         {} ({state} {} s ago)", tag.digest, tag.confirmed_seconds_ago)?;
        }
        None if facts.manifest.is_none() && matches!(facts.kind, Kind::Image | Kind::Blob) => {
            writeln!(text, "cached      nothing")?;
        }
        None => {}
    }
    if let Some(manifest) = &facts.manifest {
        writeln!(text, "content     kept  size        digest")?;
        node(text, manifest, 0)?;
    }
    if facts.scope == "local" {
        return Ok(());
    }
    if matches!(facts.kind, Kind::Tags | Kind::Referrers) {
        // A list of referrers is believed as long as a tag is, by the server that has it.
        return facts.upstream_requests.iter().try_for_each(|request| writeln!(text, "the list    {request}"));
    }
    match facts.upstream_requests.as_slice() {
        [] => writeln!(text, "a pull      asks the upstream nothing"),
        requests => {
            // What a manifest that is not here refers to is not known yet.
            let first = if facts.manifest.is_some() { "" } else { " first" };
            let plural = if requests.len() == 1 { "request" } else { "requests" };
            writeln!(text, "a pull      of all of it asks the upstream{first} ({} {plural}):", requests.len())?;
            for request in requests.iter().take(LISTED) {
                writeln!(text, "            {request}")?;
            }
            Ok(())
        }
    }
}

fn node(text: &mut String, this: &Node, depth: usize) -> std::fmt::Result {
    let here = if this.here { "yes" } else { "no" };
    let indent = "  ".repeat(depth);
    writeln!(text, "            {here:<5} {:<11} {indent}{} {}", bytes(this.size), this.digest, this.media_type)?;
    this.children.iter().try_for_each(|child| node(text, child, depth + 1))
}
