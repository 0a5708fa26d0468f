//! A fill has one span, a trace of its own, and the spans of its followers link to it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Instrument, Subscriber};
use tracing_subscriber::layer::{Context as LayerContext, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

use super::*;

/// What the subscriber saw.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Of the span `fill`.
    fields: HashMap<&'static str, String>,
    fill_is_root: bool,
    /// Names of spans that follow from the span `fill`.
    linked: Vec<&'static str>,
    /// Messages of events within the span `fill`.
    messages: Vec<String>,
}

struct Fields<'a>(&'a mut HashMap<&'static str, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Seen {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: LayerContext<'_, S>) {
        if attributes.metadata().name() == "fill" {
            let mut state = self.0.lock();
            attributes.record(&mut Fields(&mut state.fields));
            state.fill_is_root = context.span(id).is_some_and(|span| span.parent().is_none());
        }
    }

    fn on_record(&self, _: &Id, values: &Record<'_>, _: LayerContext<'_, S>) {
        values.record(&mut Fields(&mut self.0.lock().fields));
    }

    fn on_follows_from(&self, span: &Id, follows: &Id, context: LayerContext<'_, S>) {
        let name = |id: &Id| context.span(id).map(|span| span.name());
        if name(follows) == Some("fill") {
            self.0.lock().linked.extend(name(span));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: LayerContext<'_, S>) {
        if context.event_span(event).is_some_and(|span| span.name() == "fill") {
            let mut fields = HashMap::new();
            event.record(&mut Fields(&mut fields));
            self.0.lock().messages.extend(fields.remove("message"));
        }
    }
}

#[tokio::test]
async fn a_fill_is_a_trace_of_its_own_that_followers_link_to() {
    // A callsite that another test registers in a thread without a subscriber may stay disabled for all. With a global
    // subscriber there is no such thread, and the first fill registers what was disabled before.
    tracing::subscriber::set_global_default(Registry::default()).unwrap();
    let ((bytes, digest), warm_up) = (content(), Fixture::new());
    let source = ScriptedSource::new("a/b", [Answer::complete(LENGTH).send(&bytes)]);
    read_exactly(&mut warm_up.follow(&digest, &source).await.unwrap(), LENGTH).await;
    while warm_up.fills.is_running(&digest) {
        tokio::task::yield_now().await;
    }

    let seen = Seen::default();
    // One thread: this subscriber sees the fill's task, too.
    let _default = tracing::subscriber::set_default(Registry::default().with(seen.clone()));
    let (fixture, gate) = (Fixture::new(), Arc::new(Semaphore::new(0)));
    let source = ScriptedSource::new("a/b", [Answer::complete(LENGTH).wait(&gate).send(&bytes)]);
    let first = async { fixture.join(&digest, &source) }.instrument(tracing::info_span!("first")).await;
    let mut second = async { fixture.join(&digest, &source) }.instrument(tracing::info_span!("second")).await;
    gate.add_permits(1);
    timeout(LIMIT, second.start(super::Readiness::Complete)).await.unwrap().unwrap();
    let logged = async {
        while seen.0.lock().messages.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, logged).await.unwrap();
    drop(first);

    let state = seen.0.lock();
    assert!(state.fill_is_root);
    assert_eq!(state.linked, ["first", "second"]);
    assert_eq!(state.messages, ["fetched a blob"]);
    let digest = digest.to_string();
    let expected = [
        ("digest", digest.as_str()),
        ("repository", &format!("{NAME}/a/b")),
        ("upstream", NAME),
        ("bytes", &LENGTH.to_string()),
        ("outcome", "stored"),
    ];
    for (field, value) in expected {
        assert_eq!(state.fields.get(field).map(String::as_str), Some(value), "{field}");
    }
}
