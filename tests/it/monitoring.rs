//! Dashboards, alerts and runbooks, without Grafana and Prometheus: their rules, names and links. `clients::prometheus` runs
//! their queries.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

pub fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(SOURCES).join(path)).unwrap()
}

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&read(&format!("deploy/grafana/{name}.json"))).unwrap()
}

/// The panels of a dashboard that have queries.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().unwrap();
    panels.iter().filter(|panel| panel["type"] != "row").collect()
}

fn queries(panel: &Value) -> Vec<&str> {
    panel["targets"].as_array().unwrap().iter().map(|target| target["expr"].as_str().unwrap()).collect()
}

/// Every query of a dashboard with its variables replaced: all jobs, instances and upstreams, and these times.
pub fn queries_of(name: &str, rate_interval: &str, range: &str) -> Vec<(String, String)> {
    let dashboard = dashboard(name);
    let replace = |query: &str| {
        let query = query.replace("$__rate_interval", rate_interval).replace("$__range", range);
        ["$job", "$instance", "$upstream"].iter().fold(query, |query, variable| query.replace(variable, ".+"))
    };
    let of_panel = |panel: &&Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        queries(panel).into_iter().map(|query| (title.clone(), replace(query))).collect::<Vec<_>>()
    };
    panels(&dashboard).iter().flat_map(of_panel).collect()
}

/// The names of metrics in a query.
fn metrics_in(query: &str) -> BTreeSet<&str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| ["roadstead_", "registry_", "process_"].iter().any(|prefix| word.starts_with(prefix))).collect()
}

#[test]
fn dashboards_keep_the_rules_of_the_dashboard_linter() {
    for name in ["roadstead", "registry-compatible"] {
        let dashboard = dashboard(name);
        assert!(dashboard["id"].is_null() && dashboard["uid"].is_string() && dashboard["editable"] == false, "{name}");
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        assert_eq!(variables[0]["type"], "datasource", "{name}");
        for variable in &variables[1..] {
            assert_eq!(variable["refresh"], 2, "{name}: variables follow the chosen time");
            assert_eq!(variable["datasource"]["uid"], "${datasource}");
        }
        let mut ids = BTreeSet::new();
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64()), "{title}: the id is used twice");
            assert!(panel["description"].as_str().unwrap().len() > 20, "{title} has a description");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has a unit");
            for query in queries(panel) {
                let metrics = metrics_in(query);
                let matchers = query.matches("job=~\"$job\",instance=~\"$instance\"").count();
                let selectors = query.matches('{').count();
                assert!(
                    !metrics.is_empty() && matchers == selectors,
                    "{title}: each selector has both matchers: {query}"
                );
                let counters = metrics.iter().filter(|metric| metric.ends_with("_total")).count();
                let rates = query.matches("rate(").count() + query.matches("increase(").count();
                assert!(rates >= counters, "{title}: counters are under rate or increase: {query}");
                assert!(
                    !query.contains("[5m]") && !query.contains("[1m]"),
                    "{title}: the interval is Grafana's: {query}"
                );
            }
        }
    }
}

#[test]
fn panels_of_a_dashboard_do_not_overlap() {
    for name in ["roadstead", "registry-compatible"] {
        let dashboard = dashboard(name);
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(place("x") + place("w") <= 24, "{}", panel["title"]);
            for x in place("x")..place("x") + place("w") {
                for y in place("y")..place("y") + place("h") {
                    assert!(taken.insert((x, y)), "{name}: {} overlaps", panel["title"]);
                }
            }
        }
    }
}

#[test]
fn queries_name_metrics_that_exist() {
    let reference = read("docs/reference/metrics.md");
    let process = ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"];
    let known = |metric: &str| {
        let family = ["_bucket", "_count", "_sum"].iter().find_map(|end| metric.strip_suffix(end)).unwrap_or(metric);
        reference.contains(&format!("| `{family}` |"))
            || process.contains(&metric)
            || metric == "process_start_time_seconds"
    };
    let dashboards = ["roadstead", "registry-compatible"].map(|name| queries_of(name, "5m", "1h"));
    for (title, query) in dashboards.into_iter().flatten() {
        for metric in metrics_in(&query) {
            assert!(known(metric), "{title}: {metric} does not exist");
        }
    }
    for line in read("deploy/prometheus/rules.yaml").lines().filter(|line| !line.contains("description:")) {
        for metric in metrics_in(line) {
            assert!(known(metric), "{metric} in {line} does not exist");
        }
    }
    // Who comes from registry:2 has no others.
    for (title, query) in queries_of("registry-compatible", "5m", "1h") {
        assert!(metrics_in(&query).iter().all(|metric| metric.starts_with("registry_")), "{title}: {query}");
    }
}

#[test]
fn every_alert_has_a_severity_a_text_and_a_runbook() {
    let rules: Value = serde_saphyr::from_str(&read("deploy/prometheus/rules.yaml")).unwrap();
    let runbooks = read("docs/runbooks.md");
    let alerts = rules["groups"][0]["rules"].as_array().unwrap();
    let mut names = Vec::new();
    for alert in alerts {
        let name = alert["alert"].as_str().unwrap();
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}");
        let summary = alert["annotations"]["summary"].as_str().unwrap();
        assert!(!summary.contains("{{"), "{name}: a summary has no values, so that alerts can be grouped");
        assert!(alert["annotations"]["description"].as_str().unwrap().contains("{{ $labels."), "{name}");
        let url = alert["annotations"]["runbook_url"].as_str().unwrap();
        assert!(url.ends_with(&format!("/docs/runbooks.md#{}", name.to_lowercase())), "{name}: {url}");
        names.push(name);
    }
    let sections: Vec<_> = runbooks.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(sections, names, "the runbooks are in the order of the alerts");
    for section in runbooks.split("\n## ").skip(1) {
        for part in ["**Clients notice:**", "**Check:**", "**Do:**"] {
            assert!(section.contains(part), "{part} in {section}");
        }
    }
}
