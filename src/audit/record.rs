//! One record, as a line of JSON and as an event of the log.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::SystemTime;

use serde::Serialize;

use crate::printable;

/// Largest text of a client in bytes, when it is escaped.
const MAX_TEXT_BYTES: usize = 256;
/// Longest name of a repository in bytes.
const MAX_NAME_BYTES: usize = 512;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Credentials were accepted: a token was issued, or a password was verified that was not remembered.
    Login,
    LoginFailed,
    /// Content was pushed: a manifest under its tag or digest, or a blob.
    Push,
    /// A further tag was set by a push.
    Tag,
    Delete,
    Pull,
    /// A user may not do this.
    Denied,
    /// An operation of the operator.
    Admin,
}

/// A record. Its texts may come from clients: they are shortened and escaped when they are written.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    pub event: Event,
    /// A user who is known, or `anonymous`.
    pub who: Option<Cow<'a, str>>,
    /// The kind of credentials.
    pub how: Option<&'static str>,
    pub client: Option<IpAddr>,
    /// The `User-Agent`.
    pub agent: Option<Cow<'a, str>>,
    /// `local`, or the name of an upstream.
    pub scope: Option<Cow<'a, str>>,
    pub repository: Option<Cow<'a, str>>,
    /// A tag or digest; of an operation, its name.
    pub reference: Option<Cow<'a, str>>,
    pub digest: Option<Cow<'a, str>>,
    /// The place of the rule that allowed it.
    pub rule: Option<Cow<'a, str>>,
    pub outcome: Option<Cow<'a, str>>,
    pub request_id: Option<Cow<'a, str>>,
}

/// The fields of a line, in this order.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    who: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    how: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

// === impl Event ===

impl Event {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::LoginFailed => "login_failed",
            Self::Push => "push",
            Self::Tag => "tag",
            Self::Delete => "delete",
            Self::Pull => "pull",
            Self::Denied => "denied",
            Self::Admin => "admin",
        }
    }
}

// === impl Record ===

impl Record<'_> {
    /// A record that says nothing else.
    pub fn new(event: Event) -> Self {
        Self {
            event,
            who: None,
            how: None,
            client: None,
            agent: None,
            scope: None,
            repository: None,
            reference: None,
            digest: None,
            rule: None,
            outcome: None,
            request_id: None,
        }
    }

    fn line(&self) -> Line<'_> {
        fn text<'t>(text: &'t Option<Cow<'_, str>>, max: usize) -> Option<&'t str> {
            text.as_deref().map(|text| printable::prefix(text, max))
        }
        Line {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            event: self.event.as_str(),
            who: text(&self.who, MAX_TEXT_BYTES),
            how: self.how,
            client: self.client,
            agent: text(&self.agent, MAX_TEXT_BYTES),
            scope: text(&self.scope, MAX_TEXT_BYTES),
            repository: text(&self.repository, MAX_NAME_BYTES),
            reference: text(&self.reference, MAX_TEXT_BYTES),
            digest: text(&self.digest, MAX_TEXT_BYTES),
            rule: text(&self.rule, MAX_NAME_BYTES),
            outcome: text(&self.outcome, MAX_TEXT_BYTES),
            request_id: text(&self.request_id, MAX_TEXT_BYTES),
        }
    }

    /// One line of JSON, with its end.
    pub(super) fn to_line(&self) -> String {
        // The fields are texts, so this does not fail.
        let json = serde_json::to_string(&self.line()).unwrap_or_default();
        printable::json(&json) + "\n"
    }

    /// Writes it to the log. Texts are fields and not displayed, so that the text format puts quotes around them.
    pub(super) fn log(&self) {
        let Line {
            time: _,
            event,
            who,
            how,
            client,
            agent,
            scope,
            repository,
            reference,
            digest,
            rule,
            outcome,
            request_id,
        } = self.line();
        let client = client.map(tracing::field::display);
        tracing::info!(
            target: "roadstead::audit",
            event, who, how, client, agent, scope, repository, reference, digest, rule, outcome, request_id,
        );
    }
}

/// The line about records for which the file was too slow.
pub(super) fn dropped(count: u64) -> String {
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let outcome = format!("{count} records were dropped because the file was too slow");
    serde_json::json!({ "time": time, "event": "dropped", "outcome": outcome }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hostile() -> Record<'static> {
        Record {
            who: Some("ann\n{\"event\":\"login\"}".into()),
            how: Some("password"),
            client: Some("192.0.2.1".parse().unwrap()),
            agent: Some(format!("\u{1b}[2J\" who=\"admin\u{2028}{}", "x".repeat(10_000)).into()),
            repository: Some("team/app".into()),
            ..Record::new(Event::Denied)
        }
    }

    #[test]
    fn a_line_is_json_in_a_fixed_order_and_without_control_characters() {
        let line = hostile().to_line();
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1 && line.len() < 1000, "{line}");
        assert!(!line.trim_end().contains(printable::is_unprintable), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["event"], &value["who"]), (&"denied".into(), &"ann\n{\"event\":\"login\"}".into()));
        let fields = ["time", "event", "who", "how", "client", "agent", "repository"];
        let places = fields.map(|field| line.find(&format!("\"{field}\":")).unwrap());
        assert!(places.is_sorted(), "{line}");
        assert!(!line.contains("digest") && !line.contains("null"));
        assert!(value["time"].as_str().unwrap().ends_with('Z'));
    }
}
