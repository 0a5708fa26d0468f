//! Keeps `docs/reference/metrics.md` up to date: the test fails if it does not list exactly the declared families.

use std::fmt::Write;

use super::families::{Families, Reference, StorageFamilies};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/metrics.md");

const INTRODUCTION: &str = "\
# Metrics

`GET /metrics` answers in the Prometheus text format. The names that begin with `registry_` are those of `registry:2`, so its
dashboards work unchanged. No label has the name of an image as its value. The usual `process_*` metrics are exposed as well.

This page is generated from `src/telemetry/families.rs` by `make reference`; a test fails if it is outdated.

| name | type | labels | meaning |
|---|---|---|---|
";

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for Reference { name, kind, labels, help } in Families::REFERENCE.iter().chain(StorageFamilies::REFERENCE) {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = type_of(kind);
        writeln!(page, "| `{name}` | {kind} | {} | {} |", labels.join(", "), help.trim()).unwrap();
    }
    page
}

/// The metric type of a Rust type.
fn type_of(kind: &str) -> &'static str {
    match kind {
        "IntCounter" | "IntCounterVec" => "counter",
        "HistogramVec" => "histogram",
        _ => "gauge",
    }
}

#[test]
fn the_reference_of_metrics_is_up_to_date() {
    let page = page();
    if std::env::var_os("WRITE_REFERENCE").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let written = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(written == page, "docs/reference/metrics.md is outdated; run `make reference`");
}
