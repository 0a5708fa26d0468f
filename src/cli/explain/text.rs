//! Formats an explanation as text.

use std::fmt::Write;

use crate::cli::output::bytes;
use crate::control::explain::{
    ContentNode, ExplainedAccess, ExplainedBounds, ExplainedRight, Explanation, RequestKind,
};
use crate::printable::Printable;
use crate::upstream::BreakerState;

/// Maximum number of requests in the list. The line above the list has the number of all requests.
const MAX_LISTED_REQUESTS: usize = 8;

pub(super) fn render(explained: &Explanation) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut text, explained);
    text
}

fn write_all(text: &mut String, explained: &Explanation) -> std::fmt::Result {
    writeln!(text, "image       {}", Printable(&explained.image))?;
    writeln!(text, "rule        {}", Printable(&explained.rule))?;
    if explained.scope == "local" {
        writeln!(text, "scope       local: content that is pushed to this server")?;
    } else {
        let credentials = match explained.credentials {
            Some(true) => "with credentials",
            Some(false) => "anonymously",
            None => "with credentials if Docker's file has some",
        };
        writeln!(
            text,
            "scope       mirrored from {} ({credentials}), as {}",
            Printable(&explained.urls.join(", ")),
            Printable(&explained.repository)
        )?;
    }
    if let Some(access) = &explained.access {
        write_access(text, access)?;
    }
    match explained.breaker {
        Some(BreakerState::Open { for_seconds, next_probe_in_seconds }) => {
            let probe = format!("the next probe follows in {next_probe_in_seconds} s");
            writeln!(
                text,
                "upstream    not asked for {for_seconds} s, after repeated failures (circuit open); {probe}"
            )?;
        }
        Some(BreakerState::Closed { failures }) if failures > 0 => {
            writeln!(text, "upstream    {failures} failures in a row")?;
        }
        Some(BreakerState::Closed { .. }) | None => {}
    }
    let missing = if explained.data_exists { "" } else { " (does not exist)" };
    writeln!(text, "data        {}{missing}", Printable(&explained.data))?;
    if let Some(ExplainedBounds { max_size, min_free }) = explained.bounds {
        let (max_size, min_free) = (bytes(max_size), bytes(min_free));
        writeln!(text, "bounds      {max_size} for cached content, while {min_free} of the disk stay free")?;
    }
    match &explained.tag {
        Some(tag) => {
            let state = if explained.scope == "local" {
                "pushed"
            } else if tag.fresh {
                "fresh, confirmed"
            } else {
                "due for confirmation, last confirmed"
            };
            writeln!(text, "tag         {} ({state} {} s ago)", Printable(&tag.digest), tag.confirmed_seconds_ago)?;
        }
        None if explained.manifest.is_none() && matches!(explained.kind, RequestKind::Image | RequestKind::Blob) => {
            writeln!(text, "cached      nothing")?;
        }
        None => {}
    }
    if let Some(manifest) = &explained.manifest {
        writeln!(text, "content     stored  size        digest")?;
        node(text, manifest, 0)?;
    }
    if explained.scope == "local" {
        return Ok(());
    }
    if matches!(explained.kind, RequestKind::Tags | RequestKind::Referrers) {
        // Only a running server caches lists, so they are always shown as requests.
        return explained
            .upstream_requests
            .iter()
            .try_for_each(|request| writeln!(text, "the list    {}", Printable(request)));
    }
    match explained.upstream_requests.as_slice() {
        [] => writeln!(text, "a pull      needs no request to the upstream"),
        requests => {
            // The references of a manifest that is not stored are not known yet.
            let first = if explained.manifest.is_some() { "" } else { " first" };
            let plural = if requests.len() == 1 { "request" } else { "requests" };
            writeln!(text, "a pull      of everything asks the upstream{first} ({} {plural}):", requests.len())?;
            for request in requests.iter().take(MAX_LISTED_REQUESTS) {
                writeln!(text, "            {}", Printable(request))?;
            }
            Ok(())
        }
    }
}

fn write_access(text: &mut String, access: &ExplainedAccess) -> std::fmt::Result {
    let user = Printable(&access.user);
    if !access.has_users {
        return writeln!(
            text,
            "access      everyone may do everything: this configuration has no users ([auth]); name another with --config"
        );
    }
    let mut label = "access";
    for ExplainedRight { right, rule, only_if_public } in &access.rights {
        match rule {
            Some(rule) if *only_if_public => {
                let rule = Printable(rule);
                writeln!(text, "{label:<11} {user} may {right} if it is public at its upstream: the rule at {rule}")?;
            }
            Some(rule) => writeln!(text, "{label:<11} {user} may {right}: the rule at {}", Printable(rule))?,
            None => writeln!(text, "{label:<11} {user} may not {right}: no rule allows it")?,
        }
        label = "";
    }
    Ok(())
}

fn node(text: &mut String, this: &ContentNode, depth: usize) -> std::fmt::Result {
    let stored = if this.stored { "yes" } else { "no" };
    let indent = "  ".repeat(depth);
    writeln!(
        text,
        "            {stored:<7} {:<11} {indent}{} {}",
        bytes(this.size),
        Printable(&this.digest),
        Printable(&this.media_type)
    )?;
    this.children.iter().try_for_each(|child| node(text, child, depth + 1))
}
