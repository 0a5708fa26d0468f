//! Matching of the names of repositories, and of identities, against patterns, without allocation.

use std::iter::Peekable;
use std::str::Chars;

use crate::config::{AccessPattern, PatternComponent, PatternScope};
use crate::oci::{RepoId, Scope};

/// Whether the pattern matches the repository. `user` is the name of the user if it can be a component of a name.
pub(super) fn matches(pattern: &AccessPattern, repo: &RepoId, user: Option<&str>) -> bool {
    let is_in_scope = match (pattern.scope(), &repo.scope) {
        (PatternScope::Everything, _) => return true,
        (PatternScope::Local, Scope::Local) => true,
        (PatternScope::Upstream(of_pattern), Scope::Upstream(upstream)) => **upstream == **of_pattern,
        _ => false,
    };
    is_in_scope && matches_name(pattern.components(), repo.name.as_str(), user)
}

/// Whether the pattern can match a repository of the scope.
pub(super) fn may_match_in(pattern: &AccessPattern, scope: &Scope, user: Option<&str>) -> bool {
    let is_in_scope = match (pattern.scope(), scope) {
        (PatternScope::Everything, _) => return true,
        (PatternScope::Local, scope) => scope.is_local(),
        (PatternScope::Upstream(of_pattern), Scope::Upstream(upstream)) => **upstream == **of_pattern,
        (PatternScope::Upstream(_), Scope::Local) => false,
    };
    is_in_scope && (user.is_some() || !pattern.components().contains(&PatternComponent::User))
}

/// Matches the components from left to right. After a failure, the last `**` takes one more component: an earlier one
/// needs no other try, because the last one can take whatever the earlier one would.
fn matches_name(pattern: &[PatternComponent], name: &str, user: Option<&str>) -> bool {
    let (mut at, mut rest) = (0, Some(name));
    // Where to go on after the last `**`: the component of the pattern, and the name that is left.
    let mut retry: Option<(usize, Option<&str>)> = None;
    loop {
        match (pattern.get(at), rest) {
            (None, None) => return true,
            // At the end, after other components, it takes at least one: `team/**` does not match `team`.
            (Some(PatternComponent::Many), Some(_)) => {
                if at + 1 == pattern.len() {
                    return true;
                }
                at += 1;
                retry = Some((at, rest));
                continue;
            }
            (Some(PatternComponent::Many), None) => return false,
            (Some(component), Some(name)) => {
                let (first, after) = split_first(name);
                if matches_component(component, first, user) {
                    (at, rest) = (at + 1, after);
                    continue;
                }
            }
            _ => {}
        }
        match retry {
            Some((after, Some(name))) => {
                rest = split_first(name).1;
                retry = Some((after, rest));
                at = after;
            }
            _ => return false,
        }
    }
}

/// The first component of a name, and the rest; `None` after the last one.
fn split_first(name: &str) -> (&str, Option<&str>) {
    name.split_once('/').map_or((name, None), |(first, rest)| (first, Some(rest)))
}

fn matches_component(pattern: &PatternComponent, text: &str, user: Option<&str>) -> bool {
    match pattern {
        PatternComponent::Text(pattern) if !pattern.contains('*') => pattern == text,
        PatternComponent::Text(pattern) => matches_stars(pattern, text),
        PatternComponent::User => user == Some(text),
        PatternComponent::Many => true,
    }
}

/// The same for characters: each `*` stands for any text.
fn matches_stars(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars().peekable(), text.chars());
    let mut retry: Option<(Peekable<Chars<'_>>, Chars<'_>)> = None;
    loop {
        let mut after = text.clone();
        match (pattern.peek(), after.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                pattern.next();
                retry = Some((pattern.clone(), text.clone()));
                continue;
            }
            (Some(expected), Some(found)) if *expected == found => {
                pattern.next();
                text = after;
                continue;
            }
            _ => {}
        }
        let Some((after_star, from)) = &mut retry else { return false };
        if from.next().is_none() {
            return false;
        }
        (pattern, text) = (after_star.clone(), from.clone());
    }
}

/// Whether the pattern matches a text that is no name of a repository, such as the value of an identity: `*` is any text
/// without a slash, and `**` any text.
///
/// After a failure, the last `*` takes one more character. If that is a slash, the last `**` before it takes one more. No
/// earlier one needs another try: the last `**` can take whatever an earlier one would, and an earlier `*` would only
/// begin what follows it later in the same component.
pub(super) fn matches_text(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut found) = (0, 0);
    // Where to go on: the places in the pattern after the stars, and in the text after what they take.
    let mut star: Option<(usize, usize)> = None;
    let mut stars: Option<(usize, usize)> = None;
    loop {
        match (&pattern[at..], text.get(found)) {
            ([b'*', b'*', ..], _) => {
                at += 2;
                (star, stars) = (None, Some((at, found)));
                continue;
            }
            ([b'*', ..], _) => {
                at += 1;
                star = Some((at, found));
                continue;
            }
            ([], None) => return true,
            ([expected, ..], Some(byte)) if expected == byte => {
                (at, found) = (at + 1, found + 1);
                continue;
            }
            _ => {}
        }
        let taken = |(_, after): &(usize, usize)| text.get(*after).copied();
        if let Some((after, from)) = star.filter(|star| taken(star).is_some_and(|byte| byte != b'/')) {
            star = Some((after, from + 1));
            (at, found) = (after, from + 1);
        } else if let Some((after, from)) = stars.filter(|stars| taken(stars).is_some()) {
            (star, stars) = (None, Some((after, from + 1)));
            (at, found) = (after, from + 1);
        } else {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// The pattern as a rule of a server with the usual upstreams has it.
    fn pattern(text: &str) -> AccessPattern {
        AccessPattern::for_test(text, &Config::default())
    }

    fn local(name: &str) -> RepoId {
        RepoId::local(name.parse().unwrap())
    }

    fn mirrored(upstream: &str, name: &str) -> RepoId {
        RepoId::new(Scope::Upstream(upstream.into()), name.parse().unwrap())
    }

    #[test]
    fn stars_match_within_and_double_stars_across_components() {
        for (text, name, expected) in [
            ("**", "a", true),
            ("**", "a/b/c", true),
            ("team/app", "team/app", true),
            ("team/app", "team/apps", false),
            ("team/app", "team", false),
            ("team/app", "team/app/x", false),
            ("team/*", "team/app", true),
            ("team/*", "team/a/b", false),
            ("team/*", "team", false),
            ("team/**", "team/app", true),
            ("team/**", "team/a/b", true),
            ("team/**", "team", false),
            ("team/**", "teams/app", false),
            ("*", "app", true),
            ("*", "team/app", false),
            ("**/app", "app", true),
            ("**/app", "a/b/app", true),
            ("**/app", "a/b/app/c", false),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("a/**/z", "a/b/z/y", false),
            ("a/**/b/**/c", "a/x/b/y/b/c", true),
            ("a/**/b/*", "a/b/b/c", true),
            ("a/**/**", "a/b", true),
            ("a/**/**", "a", false),
            ("team/app-*", "team/app-x", true),
            ("team/app-*", "team/app", false),
            ("team/*-app", "team/my-app-app", true),
            ("team/a*b*c", "team/abbc", true),
            ("team/a*b*c", "team/abbd", false),
            ("team/a*b", "team/a/b", false),
        ] {
            assert_eq!(matches(&pattern(text), &local(name), None), expected, "{text} on {name}");
        }
    }

    #[test]
    fn patterns_match_in_their_scope_only() {
        for (text, repo, expected) in [
            ("**", mirrored("ghcr.io", "a/b"), true),
            ("*/*", mirrored("ghcr.io", "a/b"), false),
            ("**/b", mirrored("ghcr.io", "a/b"), false),
            ("ghcr.io/**", mirrored("ghcr.io", "a/b"), true),
            ("ghcr.io/**", mirrored("quay.io", "a/b"), false),
            ("ghcr.io/**", local("a/b"), false),
            ("docker.io/library/*", mirrored("docker.io", "library/alpine"), true),
            ("docker.io/library/*", mirrored("docker.io", "org/alpine"), false),
        ] {
            assert_eq!(matches(&pattern(text), &repo, None), expected, "{text} on {repo}");
            assert!(!expected || may_match_in(&pattern(text), &repo.scope, None), "{text} in {}", repo.scope.as_str());
        }
        assert!(!may_match_in(&pattern("team/**"), &mirrored("ghcr.io", "a").scope, None));
        assert!(!may_match_in(&pattern("ghcr.io/a"), &Scope::Local, None));
    }

    #[test]
    fn the_users_name_is_one_whole_component() {
        let own = pattern("users/{user}/**");
        assert!(matches(&own, &local("users/ann/app"), Some("ann")));
        assert!(!matches(&own, &local("users/ann/app"), Some("bob")));
        assert!(!matches(&own, &local("users/annie/app"), Some("ann")));
        assert!(!matches(&own, &local("users/ann/app"), None));
        assert!(!may_match_in(&own, &Scope::Local, None) && may_match_in(&own, &Scope::Local, Some("ann")));
    }

    #[test]
    fn stars_in_text_stop_at_slashes_and_double_stars_do_not() {
        for (pattern, text, expected) in [
            ("acme/app", "acme/app", true),
            ("acme/*", "acme/app", true),
            ("acme/*", "acme/app/x", false),
            ("acme/*", "acme", false),
            ("acme/*", "acmeevil/app", false),
            ("acme/**", "acme/a/b", true),
            ("**", "x", true),
            ("repo:acme/app:ref:refs/heads/*", "repo:acme/app:ref:refs/heads/main", true),
            ("repo:acme/*:ref:**", "repo:acme/app:ref:refs/heads/a/b", true),
            ("repo:acme/*:ref:**", "repo:acme/x/app:ref:refs/heads/a", false),
            ("system:serviceaccount:ci:*", "system:serviceaccount:ci:builder", true),
            ("spiffe://c/ns/*/sa/app", "spiffe://c/ns/a/sa/app", true),
            ("spiffe://c/ns/*/sa/app", "spiffe://c/ns/a/b/sa/app", false),
            ("**/sa/*", "a/sa/b/sa/c", true),
            ("**/sa/*x", "a/sa/bx/sa/cx", true),
            ("**/sa/*/x", "a/sa/b/sa/c/x", true),
            ("*ü*", "aüb", true),
            ("*", "", true),
        ] {
            assert_eq!(matches_text(pattern, text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn a_hard_pattern_ends() {
        let (pattern, text) = (format!("**{}b", "*a".repeat(20)), "a".repeat(1000));
        assert!(!matches_text(&pattern, &text));
    }
}
