//! What programs gave, kept for as long as it is good and renewed before that ends.
//!
//! However many ask, a program runs once, as a task of its own: who asks in a hurry does not end it. While what it gave
//! is good nobody waits for the next run, and a run that fails changes nothing until then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::password::{self, Object};
use super::{Account, Failure, Found, program};
use crate::tasks::Tasks;

/// A failed program is not started again for every request.
const PAUSE: Duration = Duration::from_secs(5);
/// The least age of what an upstream refuses before the program is asked for something newer.
const LEAST_AGE: Duration = Duration::from_secs(60);
/// So that no output makes a program run all the time.
const SHORTEST: Duration = Duration::from_secs(10);

/// One program to run, and how to read what it prints.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub(super) command: Vec<String>,
    pub(super) input: String,
    pub(super) reads: Reads,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Reads {
    /// The password of this user.
    Password(String),
    /// A JSON object with both.
    Object,
    /// The same by Docker's rules for `docker-credential-*`, which may have none.
    Helper,
}

/// The programs of one source.
#[derive(Clone)]
pub(super) struct Programs {
    lifetime: Duration,
    tasks: Tasks,
    slots: Arc<Mutex<HashMap<Call, Slot>>>,
}

#[derive(Default)]
struct Slot {
    current: Option<Given>,
    /// Closed without a word if the server stops.
    running: Option<watch::Receiver<Option<Result<Found, Failure>>>>,
    failed: Option<(Instant, Failure)>,
}

struct Given {
    found: Found,
    obtained: Instant,
    lifetime: Duration,
}

// === impl Programs ===

impl Programs {
    pub(super) fn new(lifetime: Duration, tasks: Tasks) -> Self {
        Self { lifetime, tasks, slots: Arc::default() }
    }

    /// What was last given and is still good, without asking.
    pub(super) fn known(&self, call: &Call) -> Option<Found> {
        let slots = self.slots.lock();
        let given = slots.get(call)?.current.as_ref()?;
        given.is_good().then(|| given.found.clone())
    }

    pub(super) async fn get(&self, call: &Call, deadline: Instant) -> Result<Found, Failure> {
        let wait = {
            let mut slots = self.slots.lock();
            let slot = slots.entry(call.clone()).or_default();
            let pausing = slot.failed.clone().filter(|(at, _)| at.elapsed() < PAUSE);
            if let Some(given) = slot.current.as_ref().filter(|given| given.is_good()) {
                let found = given.found.clone();
                if given.is_old() && pausing.is_none() {
                    self.run(call, slot);
                }
                return Ok(found);
            }
            if let Some((_, why)) = pausing {
                return Err(why);
            }
            self.run(call, slot)
        };
        outcome(wait, deadline).await
    }

    /// Runs the program because an upstream refuses what it gave; whether it gave something else then.
    pub(super) async fn renew(&self, call: &Call, refused: Account, deadline: Instant) -> bool {
        let wait = {
            let mut slots = self.slots.lock();
            let Some(slot) = slots.get_mut(call) else { return false };
            let Some(given) = &slot.current else { return false };
            if given.account() != refused {
                return true;
            }
            if given.obtained.elapsed() < LEAST_AGE.min(given.lifetime / 10) {
                return false;
            }
            self.run(call, slot)
        };
        matches!(outcome(wait, deadline).await, Ok(Some(other)) if other.account != refused)
    }

    /// Starts it unless it runs.
    fn run(&self, call: &Call, slot: &mut Slot) -> watch::Receiver<Option<Result<Found, Failure>>> {
        if let Some(running) = &slot.running {
            return running.clone();
        }
        let (done, running) = watch::channel(None);
        slot.running = Some(running.clone());
        let (programs, call) = (self.clone(), call.clone());
        self.tasks.spawn(async move {
            let name = call.command.first().map_or("", String::as_str);
            let ran = program::run(&call.command, &call.input).await.and_then(|output| call.reads.read(&output));
            let ran = ran.map_err(|why| Failure::from(format!("{name} {why}")));
            done.send_replace(Some(programs.note(&call, ran)));
        });
        running
    }

    fn note(&self, call: &Call, ran: Result<(Found, Option<Duration>), Failure>) -> Result<Found, Failure> {
        let mut slots = self.slots.lock();
        let slot = slots.entry(call.clone()).or_default();
        slot.running = None;
        match ran {
            Ok((found, lifetime)) => {
                let lifetime = lifetime.unwrap_or(self.lifetime);
                slot.failed = None;
                slot.current = Some(Given { found: found.clone(), obtained: Instant::now(), lifetime });
                Ok(found)
            }
            Err(why) => {
                tracing::warn!("no new credentials: {why}");
                slot.failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }
}

async fn outcome(
    mut running: watch::Receiver<Option<Result<Found, Failure>>>,
    deadline: Instant,
) -> Result<Found, Failure> {
    match timeout_at(deadline, running.wait_for(Option::is_some)).await {
        Ok(Ok(outcome)) => outcome.clone().unwrap_or_else(|| Err("nothing was run".into())),
        Ok(Err(_)) => Err("the server stops".into()),
        Err(_) => Err("a program that gives them takes too long".into()),
    }
}

// === impl Given ===

impl Given {
    fn is_good(&self) -> bool {
        self.obtained.elapsed() < self.lifetime
    }

    /// Halfway: time enough for failed runs.
    fn is_old(&self) -> bool {
        self.obtained.elapsed() >= self.lifetime / 2
    }

    fn account(&self) -> Account {
        self.found.as_ref().map_or(Account::ANONYMOUS, |credentials| credentials.account)
    }
}

// === impl Reads ===

impl Reads {
    /// The credentials, and for how long they are good where the output says so.
    fn read(&self, output: &program::Output) -> Result<(Found, Option<Duration>), String> {
        // Helpers say so in their standard output, and end with an error.
        if *self == Self::Helper && !output.success && says_none(&output.bytes) {
            return Ok((None, None));
        }
        if !output.success {
            return Err(format!("failed ({})", output.status));
        }
        match self {
            Self::Password(username) => {
                let credentials = password::read(username, &output.bytes);
                let credentials = credentials.map_err(|why| format!("printed something that {why}"))?;
                Ok((Some(Arc::new(credentials)), None))
            }
            Self::Object | Self::Helper => {
                let object = Object::parse(&output.bytes).ok_or("printed no JSON object with Username and Secret")?;
                let lifetime = object.expires_in.map(|seconds| Duration::from_secs(seconds).max(SHORTEST));
                match object.credentials() {
                    None if *self == Self::Object => Err("printed an empty password".to_owned()),
                    credentials => Ok((credentials.map(Arc::new), lifetime)),
                }
            }
        }
    }
}

/// docker-credential-helpers: `credentials not found in native keychain`, and two more of this kind.
fn says_none(output: &[u8]) -> bool {
    let text = String::from_utf8_lossy(output);
    ["credentials not found", "no credentials server URL", "no credentials username"]
        .iter()
        .any(|phrase| text.contains(phrase))
}
