//! "Did you mean …?"

/// The one of `known` that `given` is most likely a slip of.
pub(super) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters may be wrong; with more, the guess would be noise.
    let limit = (given.len() / 3).clamp(1, 4);
    let distances = known.into_iter().map(|name| (strsim::damerau_levenshtein(given, name), name));
    distances.filter(|(distance, _)| *distance <= limit).min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
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
