//! The module table of `docs/architecture.md`.

use std::collections::{BTreeMap, BTreeSet};

/// The heading above the table. Its first column names a module, its last one the modules that it imports.
const HEADING: &str = "## Where things are";
/// The last column of a module that imports no other.
const NO_IMPORTS: &str = "nothing";

/// The modules that each module may import. A module is named by its path below `src/`: `oci`, `store/local`.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    pub rows: BTreeMap<String, BTreeSet<String>>,
}

impl Table {
    /// The error names the line of the page and the mistake in it.
    pub fn parse(page: &str) -> Result<Self, String> {
        let lines = page.lines().enumerate().skip_while(|(_, line)| line.trim() != HEADING);
        let mut lines =
            lines.skip_while(|(_, line)| !line.starts_with('|')).take_while(|(_, line)| line.starts_with('|'));
        let header = lines.next().map(|(_, line)| cells(line)).unwrap_or_default();
        if header.len() < 2 {
            return Err(format!("no table of modules and their imports below `{HEADING}`"));
        }
        let mut rows = BTreeMap::new();
        for (number, line) in lines.skip(1) {
            let at = number + 1;
            let cells = cells(line);
            if cells.len() != header.len() {
                return Err(format!("line {at}: {} cells, but the header has {}", cells.len(), header.len()));
            }
            let [module] = names(cells[0])[..] else {
                return Err(format!("line {at}: the first column must be one name in backticks, such as `oci/`"));
            };
            let module = module.trim_end_matches('/').trim_end_matches(".rs").to_owned();
            let imports = cells[cells.len() - 1];
            let imported: BTreeSet<String> =
                names(imports).into_iter().map(|name| name.trim_end_matches('/').to_owned()).collect();
            if imported.is_empty() != (imports == NO_IMPORTS) {
                return Err(format!("line {at}: the last column must be names in backticks, or `{NO_IMPORTS}`"));
            }
            if rows.insert(module.clone(), imported).is_some() {
                return Err(format!("line {at}: a second row for `{module}`"));
            }
        }
        Ok(Self { rows })
    }

    /// The row that covers the module or item at `segments`: the longest one whose path is a prefix.
    pub fn row_of(&self, segments: &[String]) -> Option<&str> {
        let mut prefixes = (1..=segments.len()).rev().map(|length| segments[..length].join("/"));
        prefixes.find_map(|prefix| self.rows.get_key_value(&prefix)).map(|(row, _)| row.as_str())
    }
}

fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

/// The texts in backticks.
fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

mod tests {
    use super::*;

    fn page(rows: &str) -> String {
        format!(
            "# Page\n\n| other | table |\n|---|---|\n\n{HEADING}\n\nText.\n\n| module | what | imports |\n|---|---|---|\n{rows}\n\nAfter.\n"
        )
    }

    #[test]
    fn rows_of_folders_files_and_sub_folders_are_read() {
        let rows = "| `oci/` | types | nothing |\n| `resolve.rs` | pure | `oci` |\n| `store/local/` | files | `oci`, `store/index` |";
        let table = Table::parse(&page(rows)).unwrap();
        assert_eq!(table.rows.keys().collect::<Vec<_>>(), ["oci", "resolve", "store/local"]);
        assert!(table.rows["oci"].is_empty());
        assert_eq!(table.rows["store/local"], BTreeSet::from(["oci".to_owned(), "store/index".to_owned()]));
    }

    #[test]
    fn the_longest_matching_row_covers_a_path() {
        let rows = "| `store/` | a | nothing |\n| `store/local/` | b | nothing |";
        let table = Table::parse(&page(rows)).unwrap();
        let row =
            |path: &str| table.row_of(&path.split("::").map(str::to_owned).collect::<Vec<_>>()).map(str::to_owned);
        assert_eq!(row("store::local::layout::Layout").unwrap(), "store/local");
        assert_eq!(row("store::Blob").unwrap(), "store");
        assert_eq!(row("pull"), None);
    }

    #[test]
    fn a_malformed_table_is_refused_with_its_line() {
        let error = |rows: &str| Table::parse(&page(rows)).unwrap_err();
        assert!(error("| `a/` | what | everything |").contains("line 12"));
        assert!(error("| `a/`, `b.rs` | what | nothing |").contains("one name in backticks"));
        assert!(error("| `a/` | nothing |").contains("2 cells"));
        assert!(error("| `a/` | what | nothing |\n| `a.rs` | what | nothing |").contains("second row"));
        assert!(Table::parse("# Page").unwrap_err().contains("no table"));
    }
}
