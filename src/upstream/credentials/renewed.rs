//! Caches the output of programs, and renews it before it expires.
//!
//! Concurrent requests share one run of a program, in a task of its own, so that a request with a short deadline does
//! not end it. While the cached output is valid, requests do not wait for the next run, and a failed run changes
//! nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::password::{self, CredentialObject};
use super::{Account, FailureReason, SourceResult, program};
use crate::tasks::Tasks;

/// Minimum time between a failed run and the next run.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
/// Minimum age before a refusal reruns the program: 60 s or a tenth of the lifetime, whichever is shorter.
const MIN_RENEWAL_AGE: Duration = Duration::from_secs(60);
/// Minimum lifetime of an output, so that a program is not run all the time.
const MIN_LIFETIME: Duration = Duration::from_secs(10);

/// One program to run, and the format of its output.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct ProgramCall {
    pub(super) command: Vec<String>,
    pub(super) input: String,
    pub(super) format: OutputFormat,
}

/// The format of a program's output.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum OutputFormat {
    /// The password of this user.
    Password(String),
    /// A JSON object with user name and password.
    Object,
    /// The same format, for a `docker-credential-*` program. Such a helper may report that it has no credentials.
    Helper,
}

/// The programs of one credential source and their cached outputs. Clones share them.
#[derive(Clone)]
pub(super) struct Programs {
    lifetime: Duration,
    tasks: Tasks,
    states: Arc<Mutex<HashMap<ProgramCall, ProgramState>>>,
}

/// The state of one program.
#[derive(Default)]
struct ProgramState {
    current: Option<CachedOutput>,
    /// The result of the current run. The channel closes without a result if the server stops.
    running: Option<watch::Receiver<Option<Result<SourceResult, FailureReason>>>>,
    failed: Option<(Instant, FailureReason)>,
}

/// The credentials of the last successful run.
struct CachedOutput {
    credentials: SourceResult,
    obtained: Instant,
    lifetime: Duration,
}

// === impl Programs ===

impl Programs {
    /// `lifetime` applies to outputs without an expiry time. Programs run in `tasks`.
    pub(super) fn new(lifetime: Duration, tasks: Tasks) -> Self {
        Self { lifetime, tasks, states: Arc::default() }
    }

    /// Returns the cached credentials, if they are valid.
    pub(super) fn known(&self, call: &ProgramCall) -> Option<SourceResult> {
        let states = self.states.lock();
        let cached = states.get(call)?.current.as_ref()?;
        cached.is_valid().then(|| cached.credentials.clone())
    }

    /// Returns the cached credentials. If there are none, runs the program.
    ///
    /// # Errors
    /// If the run fails, or has no result at `deadline`.
    pub(super) async fn get(&self, call: &ProgramCall, deadline: Instant) -> Result<SourceResult, FailureReason> {
        let wait = {
            let mut states = self.states.lock();
            let state = states.entry(call.clone()).or_default();
            let recent_failure = state.failed.clone().filter(|(at, _)| at.elapsed() < FAILURE_PAUSE);
            if let Some(cached) = state.current.as_ref().filter(|cached| cached.is_valid()) {
                let credentials = cached.credentials.clone();
                if cached.is_due() && recent_failure.is_none() {
                    self.run(call, state);
                }
                return Ok(credentials);
            }
            if let Some((_, why)) = recent_failure {
                return Err(why);
            }
            self.run(call, state)
        };
        outcome(wait, deadline).await
    }

    /// Runs the program again because its credentials were refused. Returns whether it has other credentials now.
    pub(super) async fn renew(&self, call: &ProgramCall, refused: Account, deadline: Instant) -> bool {
        let wait = {
            let mut states = self.states.lock();
            let Some(state) = states.get_mut(call) else { return false };
            let Some(cached) = &state.current else { return false };
            if cached.account() != refused {
                return true;
            }
            if cached.obtained.elapsed() < MIN_RENEWAL_AGE.min(cached.lifetime / 10) {
                return false;
            }
            self.run(call, state)
        };
        matches!(outcome(wait, deadline).await, Ok(Some(other)) if other.account != refused)
    }

    /// Starts the program unless it is running.
    fn run(
        &self,
        call: &ProgramCall,
        state: &mut ProgramState,
    ) -> watch::Receiver<Option<Result<SourceResult, FailureReason>>> {
        if let Some(running) = &state.running {
            return running.clone();
        }
        let (done, running) = watch::channel(None);
        state.running = Some(running.clone());
        let (programs, call) = (self.clone(), call.clone());
        self.tasks.spawn(async move {
            let name = call.command.first().map_or("", String::as_str);
            let ran = program::run(&call.command, &call.input).await.and_then(|output| call.format.read(&output));
            let ran = ran.map_err(|why| FailureReason::from(format!("{name} {why}")));
            done.send_replace(Some(programs.record(&call, ran)));
        });
        running
    }

    fn record(
        &self,
        call: &ProgramCall,
        ran: Result<(SourceResult, Option<Duration>), FailureReason>,
    ) -> Result<SourceResult, FailureReason> {
        let mut states = self.states.lock();
        let state = states.entry(call.clone()).or_default();
        state.running = None;
        match ran {
            Ok((credentials, lifetime)) => {
                let lifetime = lifetime.unwrap_or(self.lifetime);
                state.failed = None;
                state.current =
                    Some(CachedOutput { credentials: credentials.clone(), obtained: Instant::now(), lifetime });
                Ok(credentials)
            }
            Err(why) => {
                tracing::warn!(reason = %why, "cannot get credentials from a program");
                state.failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }
}

async fn outcome(
    mut running: watch::Receiver<Option<Result<SourceResult, FailureReason>>>,
    deadline: Instant,
) -> Result<SourceResult, FailureReason> {
    match timeout_at(deadline, running.wait_for(Option::is_some)).await {
        Ok(Ok(outcome)) => outcome.clone().unwrap_or_else(|| Err("the program was not run".into())),
        Ok(Err(_)) => Err("the server is stopping".into()),
        Err(_) => Err("the credential program did not finish in time".into()),
    }
}

// === impl CachedOutput ===

impl CachedOutput {
    fn is_valid(&self) -> bool {
        self.obtained.elapsed() < self.lifetime
    }

    /// Whether the program should run again: half of the lifetime is over, which leaves time for failed runs.
    fn is_due(&self) -> bool {
        self.obtained.elapsed() >= self.lifetime / 2
    }

    fn account(&self) -> Account {
        self.credentials.as_ref().map_or(Account::ANONYMOUS, |credentials| credentials.account)
    }
}

// === impl OutputFormat ===

impl OutputFormat {
    /// The credentials and, if the output names it, their lifetime.
    fn read(&self, output: &program::ProgramOutput) -> Result<(SourceResult, Option<Duration>), String> {
        // A helper without credentials fails and says so on its standard output.
        if *self == Self::Helper && !output.success && reports_no_credentials(&output.bytes) {
            return Ok((None, None));
        }
        if !output.success {
            return Err(format!("failed ({})", output.status));
        }
        match self {
            Self::Password(username) => {
                let credentials = password::read(username, &output.bytes);
                let credentials = credentials.map_err(|why| format!("printed a password that {why}"))?;
                Ok((Some(Arc::new(credentials)), None))
            }
            Self::Object | Self::Helper => {
                let object =
                    CredentialObject::parse(&output.bytes).ok_or("printed no JSON object with Username and Secret")?;
                let lifetime = object.expires_in.map(|seconds| Duration::from_secs(seconds).max(MIN_LIFETIME));
                match object.credentials() {
                    None if *self == Self::Object => Err("printed an empty password".to_owned()),
                    credentials => Ok((credentials.map(Arc::new), lifetime)),
                }
            }
        }
    }
}

/// Whether the output is one of the messages of docker-credential-helpers for missing credentials.
fn reports_no_credentials(output: &[u8]) -> bool {
    let text = String::from_utf8_lossy(output);
    ["credentials not found", "no credentials server URL", "no credentials username"]
        .iter()
        .any(|phrase| text.contains(phrase))
}
