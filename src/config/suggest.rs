//! Suggestions for misspelt keys ("did you mean …?").

/// The most similar of the `known` names; `None` if none is similar enough.
pub(super) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Up to a third of the letters, at most 4, may differ; with more, suggestions would be arbitrary.
    let limit = (given.len() / 3).clamp(1, 4);
    let distances = known.into_iter().map(|name| (strsim::damerau_levenshtein(given, name), name));
    distances.filter(|(distance, _)| *distance <= limit).min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_get_a_suggestion_and_other_words_do_not() {
        let known = ["tag_ttl", "negative_ttl", "max_size", "min_free"];
        let cases = [
            ("tag_tll", Some("tag_ttl")),
            ("tagttl", Some("tag_ttl")),
            ("max-size", Some("max_size")),
            ("maxsize", Some("max_size")),
            ("path", None),
            ("x", None),
        ];
        for (given, expected) in cases {
            assert_eq!(nearest(given, known), expected, "{given}");
        }
    }
}
