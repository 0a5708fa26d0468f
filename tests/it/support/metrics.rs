//! The text of `/metrics`, read as numbers.

/// All series at one moment.
#[derive(Clone, Debug)]
pub struct Metrics(Vec<Series>);

#[derive(Clone, Debug)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let series =
            lines.map(|line| series(line).unwrap_or_else(|| panic!("not a line of the exposition format: {line}")));
        Self(series.collect())
    }

    /// The sum of all series of this name that have these labels, whatever others they have; 0 if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fitting = self.0.iter().filter(|series| series.name == name);
        let fitting = fitting.filter(|series| labels.iter().all(|label| series.has(label)));
        fitting.map(|series| series.value).sum()
    }

    /// Whether any series has this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|series| series.name == name)
    }

    /// Every label value in use.
    pub fn label_values(&self) -> impl Iterator<Item = &str> {
        let labels = self.0.iter().flat_map(|series| &series.labels);
        labels.map(|(_, value)| value.as_str())
    }
}

impl Series {
    fn has(&self, (name, value): &(&str, &str)) -> bool {
        self.labels.iter().any(|label| label.0 == *name && label.1 == *value)
    }
}

/// `name{label="value",…} number`, without a time stamp. No label of ours contains a quote.
fn series(line: &str) -> Option<Series> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    let labels = labels.split("\",").filter(|label| !label.is_empty()).map(|label| {
        let (name, value) = label.split_once("=\"")?;
        Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
    });
    Some(Series { name: name.to_owned(), labels: labels.collect::<Option<_>>()?, value: value.parse().ok()? })
}
