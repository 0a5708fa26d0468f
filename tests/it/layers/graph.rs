//! The imports between modules, from the text of all source files.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Path, Source};
use super::table::Table;

/// Re-exports that are followed in sequence.
const MAX_REEXPORTS: usize = 8;

/// One path in one file that leads from one row of the table to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrow {
    pub from: String,
    pub to: String,
    pub file: String,
    pub line: usize,
}

impl Arrow {
    /// Whether one end is a folder inside the other. A module re-exports its parts and its parts use its definitions, so
    /// such arrows are no violation of layers.
    pub fn is_within_a_folder(&self) -> bool {
        let inside = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
        inside(&self.from, &self.to) || inside(&self.to, &self.from)
    }
}

struct Module {
    file: String,
    path: Vec<String>,
    source: Source,
}

/// All modules of the library.
pub struct Graph {
    modules: Vec<Module>,
    /// The targets of the `use` items of each module, by the name that they bind.
    bindings: BTreeMap<Vec<String>, BTreeMap<String, Vec<String>>>,
}

impl Graph {
    /// Reads files, each its path below `src/` and its text.
    pub fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut modules = Vec::new();
        for (file, text) in files {
            let path = module_of(file);
            let source = Source::parse(text, &path);
            modules.push(Module { file: file.to_owned(), path, source });
        }
        let test_modules: BTreeSet<_> = modules.iter().flat_map(|module| module.source.test_modules.clone()).collect();
        modules.retain(|module| !test_modules.iter().any(|test| module.path.starts_with(test)));
        let mut graph = Self { modules, bindings: BTreeMap::new() };
        graph.bindings = graph.modules.iter().map(|module| (module.path.clone(), graph.bindings_of(module))).collect();
        graph
    }

    fn bindings_of(&self, module: &Module) -> BTreeMap<String, Vec<String>> {
        let named = self.paths_of(module).filter_map(|path| Some((path.binding.clone()?, path.segments.clone())));
        named.collect()
    }

    /// The paths of a module that do not lead to another crate.
    fn paths_of<'a>(&'a self, module: &'a Module) -> impl Iterator<Item = &'a Path> {
        let is_child = |path: &Path| {
            path.segments.get(..=module.path.len()).is_some_and(|child| self.modules.iter().any(|m| m.path == child))
        };
        module.source.paths.iter().filter(move |path| !path.relative || is_child(path))
    }

    /// The names of the modules at the root of the crate.
    pub fn top_level(&self) -> BTreeSet<&str> {
        self.modules.iter().filter_map(|module| module.path.first()).map(String::as_str).collect()
    }

    pub fn has(&self, row: &str) -> bool {
        let path: Vec<_> = row.split('/').map(str::to_owned).collect();
        self.modules.iter().any(|module| module.path == path)
    }

    /// Every arrow from one row of the table to another, in the order of the files. Modules without a row are ignored.
    pub fn arrows(&self, table: &Table) -> Vec<Arrow> {
        let mut arrows = Vec::new();
        for module in &self.modules {
            let Some(from) = table.row_of(&module.path) else { continue };
            for path in self.paths_of(module) {
                let Some(to) = table.row_of(&self.target(module, path)) else { continue };
                if from != to {
                    let (from, to) = (from.to_owned(), to.to_owned());
                    arrows.push(Arrow { from, to, file: format!("src/{}", module.file), line: path.line });
                }
            }
        }
        arrows
    }

    /// The module or item that a path leads to. Inside a top-level module, a name that a parent imports is followed to its
    /// definition, as parts often reach each other that way. From outside, a module stands for all that it re-exports.
    fn target(&self, from: &Module, path: &Path) -> Vec<String> {
        let mut segments = path.segments.clone();
        for _ in 0..MAX_REEXPORTS {
            let known = (1..=segments.len()).rev().find(|length| self.bindings.contains_key(&segments[..*length]));
            let Some(known) = known.filter(|length| *length < segments.len()) else { break };
            let Some(meant) = self.bindings[&segments[..known]].get(&segments[known]) else { break };
            if segments.first() != from.path.first() || meant.first() != from.path.first() {
                break;
            }
            segments = meant.iter().chain(&segments[known + 1..]).cloned().collect();
        }
        segments
    }
}

/// `store/local/mod.rs` and `store/local.rs` are both the module `store::local`; `lib.rs` is the root.
fn module_of(file: &str) -> Vec<String> {
    let mut path: Vec<_> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if path.last().is_some_and(|name| name == "mod") || path == ["lib"] {
        path.pop();
    }
    path
}

/// The arrows of a cycle, ignoring arrows within a folder; empty if there is no cycle.
pub fn find_cycle(arrows: &[Arrow]) -> Vec<Arrow> {
    let mut next: BTreeMap<&str, BTreeMap<&str, &Arrow>> = BTreeMap::new();
    for arrow in arrows.iter().filter(|arrow| !arrow.is_within_a_folder()) {
        next.entry(&arrow.from).or_default().entry(&arrow.to).or_insert(arrow);
    }
    let mut finished = BTreeSet::new();
    for start in next.keys() {
        if let Some(cycle) = cycle_from(start, &next, &mut finished, &mut Vec::new()) {
            return cycle;
        }
    }
    Vec::new()
}

fn cycle_from<'a>(
    module: &'a str,
    next: &BTreeMap<&'a str, BTreeMap<&'a str, &'a Arrow>>,
    finished: &mut BTreeSet<&'a str>,
    way: &mut Vec<&'a Arrow>,
) -> Option<Vec<Arrow>> {
    if let Some(start) = way.iter().position(|arrow| arrow.from == module) {
        return Some(way[start..].iter().copied().cloned().collect());
    }
    if finished.contains(module) {
        return None;
    }
    for (to, arrow) in next.get(module).into_iter().flatten() {
        way.push(arrow);
        let cycle = cycle_from(to, next, finished, way);
        way.pop();
        if cycle.is_some() {
            return cycle;
        }
    }
    finished.insert(module);
    None
}
