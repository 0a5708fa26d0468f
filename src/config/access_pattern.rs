//! The patterns of repositories in `[[auth.rule]]`.
//!
//! They match *resolved* names: a mirrored repository begins with its upstream's name, however a client has addressed
//! it, so `docker.io/library/*` is Docker's official images. A pattern whose first component is no host is about local
//! repositories only. `**` alone is every repository.
//!
//! The language is small, so that a pattern means what a reader takes it to mean: `*` is any text within one component,
//! `**` any number of components, and `{user}` a component that is the name of the user.

use std::fmt;

use super::canonical_name;
use super::upstream::DOCKER_IO;
use crate::oci::RepoName;

/// A pattern of repositories. One that exists can match a repository, except that its upstream may be unknown.
#[derive(Clone)]
pub struct AccessPattern {
    text: String,
    scope: PatternScope,
    components: Vec<PatternComponent>,
}

/// The repositories that a pattern selects from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatternScope {
    /// All, local and mirrored ones.
    Everything,
    Local,
    /// Those of the upstream of this name.
    Upstream(String),
}

/// One component of a pattern, without the name of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatternComponent {
    /// Text in which each `*` stands for any text.
    Text(String),
    /// The name of the user (`{user}`).
    User,
    /// Any number of components (`**`), also none. At the end of a pattern, after other components, at least one.
    Many,
}

// === impl AccessPattern ===

impl AccessPattern {
    /// # Errors
    /// The message for a text that is no pattern, or that can match no repository.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| Err(format!("\"{text}\" matches no repository: {reason}"));
        if text == "**" {
            return Ok(Self { text: text.to_owned(), scope: PatternScope::Everything, components: Vec::new() });
        }
        if text.is_empty() || text.split('/').any(str::is_empty) {
            return wrong("a part between slashes is empty; write for example \"team/**\"");
        }
        let (first, rest) = text.split_once('/').unwrap_or((text, ""));
        let is_host = !rest.is_empty() && (first.contains(['.', ':']) || first == "localhost");
        if is_host && first.contains(['*', '{']) {
            return wrong("a host must be written out; write one pattern for each upstream");
        }
        let (scope, name) = match is_host {
            true => (PatternScope::Upstream(first.to_owned()), rest),
            false => (PatternScope::Local, text),
        };
        let components: Vec<_> = match name.split('/').map(component).collect() {
            Ok(components) => components,
            Err(reason) => return wrong(reason),
        };
        // The shortest text that each component may stand for. No other text would be valid where this one is not.
        let sample: Vec<String> = components.iter().filter_map(sample).collect();
        let sample = if sample.is_empty() { "0".to_owned() } else { sample.join("/") };
        if let Err(error) = sample.parse::<RepoName>() {
            return wrong(&error.to_string());
        }
        if first == DOCKER_IO && is_host && !rest.contains('/') && !rest.contains("**") {
            let message = format!(
                "official images of {DOCKER_IO} are below library/; write \"{DOCKER_IO}/library/{rest}\" or \
                 \"{DOCKER_IO}/**\""
            );
            return wrong(&message);
        }
        Ok(Self { text: text.to_owned(), scope, components })
    }

    /// Decides what the first component is, which depends on the upstreams. `is_local` says whether a local namespace
    /// begins with a host.
    ///
    /// # Errors
    /// The message for an upstream that is not configured.
    pub(super) fn resolve(&mut self, upstreams: &[&str], is_local: impl Fn(&str) -> bool) -> Result<(), String> {
        let text = &self.text;
        let host = match &self.scope {
            PatternScope::Upstream(host) => host,
            PatternScope::Local if upstreams.contains(&text.as_str()) => {
                return Err(format!("\"{text}\" matches no repository: it is an upstream; write \"{text}/**\""));
            }
            PatternScope::Local | PatternScope::Everything => return Ok(()),
        };
        if upstreams.contains(&host.as_str()) {
            return Ok(());
        }
        if is_local(host) {
            self.components.insert(0, PatternComponent::Text(host.clone()));
            self.scope = PatternScope::Local;
            return Ok(());
        }
        let rest = &text[host.len()..];
        let canonical = canonical_name(host);
        Err(match canonical == host {
            true => format!(
                "\"{text}\" begins with \"{host}\", and no upstream has this name; the upstreams are {}",
                upstreams.join(", ")
            ),
            false => format!("\"{host}\" is another name of \"{canonical}\"; write \"{canonical}{rest}\""),
        })
    }

    /// The pattern as configured.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn scope(&self) -> &PatternScope {
        &self.scope
    }

    /// The pattern of the name within the scope. Empty for [`PatternScope::Everything`].
    pub fn components(&self) -> &[PatternComponent] {
        &self.components
    }
}

#[cfg(test)]
impl AccessPattern {
    /// The pattern as a rule of this configuration has it.
    pub(crate) fn for_test(text: &str, config: &super::Config) -> Self {
        let upstreams: Vec<&str> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
        let mut pattern = Self::parse(text).unwrap();
        pattern.resolve(&upstreams, |_| false).unwrap();
        pattern
    }

    pub(crate) fn is_valid_for_test(text: &str) -> bool {
        Self::parse(text).is_ok()
    }
}

impl fmt::Debug for AccessPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl PartialEq for AccessPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

fn component(text: &str) -> Result<PatternComponent, &'static str> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-*".contains(c);
    match text {
        "**" => Ok(PatternComponent::Many),
        "{user}" => Ok(PatternComponent::User),
        _ if text.contains("**") => Err("\"**\" must be a component of its own, as in \"team/**\""),
        _ if text.contains("{user}") => Err("\"{user}\" must be a component of its own, as in \"users/{user}/**\""),
        _ if text.chars().any(|c| c.is_ascii_uppercase()) => Err("names of repositories are in lower case"),
        _ if text.contains(':') => Err("a pattern is about repositories and has no tag"),
        _ if !text.chars().all(is_plain) => Err("only \"*\", \"**\" and \"{user}\" have a special meaning"),
        _ => Ok(PatternComponent::Text(text.to_owned())),
    }
}

/// A text that the component matches if any valid name does; `None` if it may match no component at all.
fn sample(component: &PatternComponent) -> Option<String> {
    match component {
        PatternComponent::Text(text) => Some(text.replace('*', "0")),
        PatternComponent::User => Some("0".to_owned()),
        PatternComponent::Many => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> Result<PatternScope, String> {
        let mut pattern = AccessPattern::parse(text)?;
        pattern.resolve(&["docker.io", "ghcr.io", "localhost:5001"], |host| host == "my.team")?;
        Ok(pattern.scope)
    }

    #[test]
    fn the_first_component_selects_the_scope() {
        for (text, scope) in [
            ("**", PatternScope::Everything),
            ("team/**", PatternScope::Local),
            ("*", PatternScope::Local),
            ("**/app", PatternScope::Local),
            ("v1.2", PatternScope::Local),
            ("{user}/**", PatternScope::Local),
            ("my.team/app", PatternScope::Local),
            ("docker.io/**", PatternScope::Upstream("docker.io".to_owned())),
            ("docker.io/library/*", PatternScope::Upstream("docker.io".to_owned())),
            ("localhost:5001/a", PatternScope::Upstream("localhost:5001".to_owned())),
        ] {
            assert_eq!(resolved(text), Ok(scope), "{text}");
        }
        let mut local = AccessPattern::parse("my.team/app").unwrap();
        local.resolve(&[], |host| host == "my.team").unwrap();
        assert_eq!(local.components.len(), 2);
    }

    #[test]
    fn patterns_that_match_nothing_are_refused_with_a_reason() {
        for (text, reason) in [
            ("", "is empty"),
            ("/team", "is empty"),
            ("team/", "is empty"),
            ("team//app", "is empty"),
            ("Team/**", "lower case"),
            ("team/app:v1", "no tag"),
            ("team/a**", "a component of its own"),
            ("team/{user}-x", "a component of its own"),
            ("team/{a,b}", "special meaning"),
            ("team/?", "special meaning"),
            ("team/_x", "may contain only"),
            ("team/a..*", "may contain only"),
            (".*", "may contain only"),
            ("*.io/**", "written out"),
            ("docker.io/alpine", "write \"docker.io/library/alpine\""),
            ("docker.io/*", "write \"docker.io/library/*\""),
            ("docker.io", "write \"docker.io/**\""),
            ("index.docker.io/library/*", "write \"docker.io/library/*\""),
            ("quay.io/**", "no upstream has this name; the upstreams are docker.io, ghcr.io, localhost:5001"),
            ("localhost/a", "no upstream has this name"),
        ] {
            let error = resolved(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(resolved(&"a/".repeat(128)).is_err());
        assert!(resolved(&format!("{}a", "a/".repeat(128))).unwrap_err().contains("longer than"));
    }
}
