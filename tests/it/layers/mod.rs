//! No module imports upward: the imports in `src/` are those of the module table in `docs/architecture.md`.
//!
//! A row names one module, a folder or a file of `src/`, and every module that it may import. A row for a folder inside
//! a module, such as `store/local/`, covers that folder instead of the row above it. Imports between a folder and the
//! folders inside it need no entry. `lib.rs` and `main.rs` may import everything.

mod file_access;
mod graph;
mod source;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use graph::{Arrow, Graph, find_cycle};
use table::Table;

const PAGE: &str = "docs/architecture.md";

/// The differences between code and table, each with its place and the remedy.
fn differences(graph: &Graph, table: &Table) -> Vec<String> {
    let arrows = graph.arrows(table);
    let mut found = Vec::new();
    for module in graph.top_level() {
        if module != "main" && !table.rows.contains_key(module) {
            found.push(format!("`{module}` has no row in the module table of {PAGE}: add one."));
        }
    }
    for row in table.rows.keys().filter(|row| !graph.has(row)) {
        found.push(format!("{PAGE} has a row for `{row}`, which is not in src/: remove the row."));
    }
    let mut seen = BTreeSet::new();
    for Arrow { from, to, file, line } in arrows.iter().filter(|arrow| !arrow.is_within_a_folder()) {
        if !table.rows[from].contains(to) && seen.insert((from, to)) {
            found.push(format!(
                "{file}:{line}: `{from}` imports `{to}`, which its row in {PAGE} does not name. Move this code to a module \
                 above both, or pass in what it needs; only if `{from}` belongs above `{to}`, add `{to}` to the row."
            ));
        }
    }
    for (row, imports) in table.rows.iter().filter(|(row, _)| graph.has(row)) {
        for import in
            imports.iter().filter(|import| !arrows.iter().any(|arrow| (&arrow.from, &arrow.to) == (row, import)))
        {
            found.push(format!(
                "{PAGE}: the row of `{row}` names `{import}`, which no file of it imports: remove the name."
            ));
        }
    }
    let top_level = |name: &str| name.split('/').next().unwrap_or(name).to_owned();
    let outer =
        arrows.iter().map(|arrow| Arrow { from: top_level(&arrow.from), to: top_level(&arrow.to), ..arrow.clone() });
    let outer: Vec<_> = outer.filter(|arrow| arrow.from != arrow.to).collect();
    let cycle = Some(find_cycle(&arrows)).filter(|cycle| !cycle.is_empty()).unwrap_or_else(|| find_cycle(&outer));
    if !cycle.is_empty() {
        let steps = cycle.iter().map(|Arrow { from, to, file, line }| format!("`{from}` -> `{to}` ({file}:{line})"));
        let steps: Vec<_> = steps.collect();
        found.push(format!(
            "modules import each other: {}. Move what they share to a module below them.",
            steps.join(", ")
        ));
    }
    found
}

/// Every Rust file below `folder`, as its path below `root` and its text, sorted by path.
fn read_sources(root: &Path, folder: &Path, into: &mut Vec<(String, String)>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read_sources(root, &path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            into.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn imports_are_those_of_the_module_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = Table::parse(&fs::read_to_string(root.join(PAGE)).unwrap());
    let table = table.unwrap_or_else(|error| panic!("{PAGE}: {error}"));
    let mut files = Vec::new();
    read_sources(&root.join("src"), &root.join("src"), &mut files);
    let graph = Graph::new(files.iter().map(|(file, text)| (file.as_str(), text.as_str())));
    let found = differences(&graph, &table);
    assert!(found.is_empty(), "\n\n{}\n", found.join("\n"));
}

mod tests {
    use super::*;

    const FILES: [(&str, &str); 6] = [
        ("lib.rs", "mod oci; mod pull; mod store;"),
        ("oci/mod.rs", ""),
        ("pull/mod.rs", "use crate::oci::Digest;\nuse crate::store::Layout;"),
        ("store/mod.rs", "mod index;\nmod local;\nuse crate::oci;\npub use local::layout::Layout;"),
        ("store/index/mod.rs", "use super::Layout;"),
        ("store/local/layout.rs", "use crate::oci::Digest;"),
    ];
    const ROWS: [(&str, &str); 5] =
        [("oci", ""), ("pull", "oci store"), ("store", "oci"), ("store/index", "store/local"), ("store/local", "oci")];

    fn check(files: &[(&'static str, &'static str)], rows: &[(&str, &str)]) -> Vec<String> {
        let rows = rows.iter().map(|(row, imports)| {
            ((*row).to_owned(), imports.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>())
        });
        let local = ("store/local/mod.rs", "");
        let last = |file: &str| files.iter().rfind(|(name, _)| *name == file).copied().unwrap();
        let names: BTreeSet<_> = files.iter().map(|(name, _)| *name).collect();
        let graph = Graph::new(names.into_iter().map(last).chain([local]));
        differences(&graph, &Table { rows: rows.collect() })
    }

    /// The standard files with `file` added, or in place of the file of that name.
    fn with_file(file: (&'static str, &'static str)) -> Vec<(&'static str, &'static str)> {
        FILES.into_iter().chain([file]).collect()
    }

    #[test]
    fn matching_code_and_table_pass() {
        assert_eq!(check(&FILES, &ROWS), [""; 0]);
    }

    #[test]
    fn an_import_that_the_table_lacks_is_reported_with_its_line() {
        let found = check(&with_file(("oci/mod.rs", "//! Types.\nfn f() { crate::pull::start() }")), &ROWS);
        assert!(found[0].starts_with("src/oci/mod.rs:2: `oci` imports `pull`"), "{found:?}");
    }

    #[test]
    fn a_cycle_is_reported_even_if_the_table_allows_it() {
        let files = with_file(("oci/mod.rs", "use crate::pull::Pull;"));
        let found = check(&files, &[&ROWS[1..], &[("oci", "pull")]].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("`oci` -> `pull` (src/oci/mod.rs:1)") && found[0].contains("`pull` -> `oci`"),
            "{found:?}"
        );
    }

    #[test]
    fn a_cycle_through_an_inner_folder_is_reported() {
        let files = with_file(("store/local/layout.rs", "use crate::oci::Digest;\nuse crate::pull::Pull;"));
        let found = check(&files, &[&ROWS[..4], &[("store/local", "oci pull")]].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("`store` -> `pull` (src/store/local/layout.rs:2)"), "{found:?}");
    }

    #[test]
    fn parts_of_a_module_are_held_to_their_own_rows() {
        let found = check(&FILES, &[&ROWS[..3], &[("store/index", ""), ("store/local", "oci")]].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("src/store/index/mod.rs:1: `store/index` imports `store/local`"), "{found:?}");
    }

    #[test]
    fn a_name_that_no_code_imports_is_reported() {
        let found = check(&FILES, &[&ROWS[..2], &[("store", "oci pull")], &ROWS[3..]].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("the row of `store` names `pull`"), "{found:?}");
    }

    #[test]
    fn a_module_without_a_row_and_a_row_without_a_module_are_reported() {
        let found = check(&with_file(("events.rs", "")), &[&ROWS[..], &[("gone", "")]].concat());
        assert!(found.len() == 2 && found[0].contains("`events`") && found[1].contains("`gone`"), "{found:?}");
    }
}
