//! The scripted upstream: a registry on a loopback port that serves given content, follows scripts, and records its
//! requests.
//!
//! Order of a request: token endpoint, authentication, the script of its path, then the normal response of a registry.
//! So a challenged request does not consume a script.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::auth::{Auth, Bearer, TokenIssuer};
use super::image::{Content, Image, Index};
use super::registry::{self, Repositories};
use super::script::{Reply, Scripts};
use super::wire::{self, Answer, Seen, Sent};

pub struct Upstream {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
    /// While the upstream is down: reserves the port without listening on it.
    reserved: Mutex<Option<TcpSocket>>,
}

/// Decides on a request before everything else.
type Behaviour = Arc<dyn Fn(&Seen) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct Shared {
    repositories: Mutex<Repositories>,
    scripts: Scripts,
    auth: Mutex<Auth>,
    issuer: Mutex<Option<Arc<TokenIssuer>>>,
    seen: Mutex<Vec<Seen>>,
    behaviour: Mutex<Option<Behaviour>>,
    bytes_sent: AtomicU64,
    abandoned: AtomicUsize,
}

impl Upstream {
    /// An empty registry without authentication on a free loopback port. It ends when it is dropped.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a loopback port is free");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::default();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { addr, shared, accepting: Mutex::new(Some(accepting)), reserved: Mutex::default() }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:<port>` and then the path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Closes the port and every connection, as if the machine were gone.
    pub async fn go_down(&self) {
        let accepting = self.accepting.lock().take();
        if let Some(accepting) = accepting {
            accepting.abort();
            // The port is free only after the task has ended.
            drop(accepting.await);
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("an option of every socket");
            socket.bind(self.addr).expect("the port is still free");
            *self.reserved.lock() = Some(socket);
        }
    }

    /// Listens again, on the same port, with the same content and memory.
    pub async fn come_back(&self) {
        let socket = self.reserved.lock().take().expect("the upstream is down");
        let listener = socket.listen(1024).expect("the port is reserved");
        let accepting = tokio::spawn(accept(listener, Arc::clone(&self.shared)));
        *self.accepting.lock() = Some(accepting);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.lock().take() {
            accepting.abort();
        }
    }
}

// === content ===

impl Upstream {
    /// Adds the manifest under the tag and its digest, and the blobs under their digests.
    pub fn add_image(&self, repository: &str, tag: &str, image: &Image) {
        self.add_manifest(repository, &image.manifest);
        for blob in image.blobs() {
            self.add_blob(repository, blob);
        }
        self.tag(repository, tag, image.digest());
    }

    /// Adds the index under the tag, and all its images by digest.
    pub fn add_index(&self, repository: &str, tag: &str, index: &Index) {
        for image in &index.images {
            self.add_manifest(repository, &image.manifest);
            for blob in image.blobs() {
                self.add_blob(repository, blob);
            }
        }
        self.add_manifest(repository, &index.manifest);
        self.tag(repository, tag, index.digest());
    }

    pub fn add_manifest(&self, repository: &str, manifest: &Content) {
        self.change(repository, |repository| {
            repository.manifests.insert(manifest.digest.clone(), manifest.clone());
        });
    }

    pub fn add_blob(&self, repository: &str, blob: &Content) {
        self.change(repository, |repository| {
            repository.blobs.insert(blob.digest.clone(), blob.bytes.clone());
        });
    }

    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        self.change(repository, |repository| {
            repository.tags.insert(tag.to_owned(), digest.to_owned());
        });
    }

    pub fn remove_tag(&self, repository: &str, tag: &str) {
        self.change(repository, |repository| {
            repository.tags.remove(tag);
        });
    }

    /// Removes everything under this name.
    pub fn remove_repository(&self, repository: &str) {
        self.shared.repositories.lock().remove(repository);
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut registry::Repository)) {
        change(self.shared.repositories.lock().entry(name.to_owned()).or_default());
    }
}

// === scripts ===

impl Upstream {
    /// Gives these replies, one per request, and then the normal response. `*` matches every method, and at the end of the
    /// path any rest.
    pub fn script(&self, method: &str, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let replies = replies.into_iter().collect();
        self.shared.scripts.add(method, path, replies, None);
    }

    /// Gives this reply every time.
    pub fn always(&self, method: &str, path: &str, reply: Reply) {
        self.shared.scripts.add(method, path, Vec::new(), Some(reply));
    }

    /// Runs before authentication and scripts. A reply with a status is the response, one without modifies the normal
    /// response, and `None` changes nothing.
    pub fn behave(&self, behaviour: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) {
        *self.shared.behaviour.lock() = Some(Arc::new(behaviour));
    }

    /// Removes all scripts.
    pub fn end_scripts(&self) {
        self.shared.scripts.clear();
    }

    pub fn require_basic(&self, user: &str, password: &str) {
        *self.shared.auth.lock() = Auth::basic(user, password);
    }

    /// Requires tokens, which it issues itself at `/token`.
    pub fn require_bearer(&self, behaviour: Bearer) {
        self.require_bearer_from(self, behaviour);
    }

    /// Requires tokens that the other listener issues at its `/token`.
    pub fn require_bearer_from(&self, other: &Self, behaviour: Bearer) {
        let issuer = Arc::new(TokenIssuer::new(behaviour));
        *other.shared.issuer.lock() = Some(Arc::clone(&issuer));
        *self.shared.auth.lock() = Auth::Bearer { realm: other.url("/token"), issuer };
    }

    /// Removes authentication.
    pub fn require_nothing(&self) {
        *self.shared.auth.lock() = Auth::Open;
    }

    /// Revokes every token issued so far.
    pub fn revoke_tokens(&self) {
        if let Auth::Bearer { issuer, .. } = &*self.shared.auth.lock() {
            issuer.revoke_all();
        }
    }

    /// How many tokens were issued for this registry, by any listener.
    pub fn tokens_given(&self) -> usize {
        match &*self.shared.auth.lock() {
            Auth::Bearer { issuer, .. } => issuer.count(),
            Auth::Open | Auth::Basic(_) => 0,
        }
    }
}

// === recorded requests ===

impl Upstream {
    /// Requests of this method for exactly this path, including challenged ones.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let seen = self.shared.seen.lock();
        seen.iter().filter(|seen| seen.method == method && seen.path == path).count()
    }

    /// Every request in order, including token requests and challenged ones.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    /// The number of all requests.
    pub fn total(&self) -> usize {
        self.shared.seen.lock().len()
    }

    /// Resets the recorded requests and counters.
    pub fn forget(&self) {
        self.shared.seen.lock().clear();
        self.shared.bytes_sent.store(0, Ordering::SeqCst);
        self.shared.abandoned.store(0, Ordering::SeqCst);
    }

    /// Bytes of bodies written to sockets, without headers and chunk framing.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.bytes_sent.load(Ordering::SeqCst)
    }

    /// Replies whose client left before their end.
    pub fn abandoned(&self) -> usize {
        self.shared.abandoned.load(Ordering::SeqCst)
    }
}

// === impl Shared ===

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // The connections end with this task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream, Arc::clone(&shared)));
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    drop(stream.set_nodelay(true));
    let mut stream = BufReader::new(stream);
    while let Ok(Some(seen)) = wire::read_request(&mut stream).await {
        shared.seen.lock().push(seen.clone());
        let (answer, reply) = shared.answer(&seen);
        let is_head = seen.method == "HEAD";
        match wire::send(&mut stream, is_head, answer, &reply, &shared.bytes_sent).await {
            Sent::Complete => {}
            Sent::Closed => return,
            Sent::Abandoned => {
                shared.abandoned.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    }
}

impl Shared {
    fn answer(&self, seen: &Seen) -> (Answer, Reply) {
        let behaviour = self.behaviour.lock().clone();
        if let Some(reply) = behaviour.and_then(|behaviour| behaviour(seen)) {
            let answers = reply.status.is_none();
            let usual = || registry::answer(seen, &self.repositories.lock(), reply.ignores_range);
            return (if answers { usual() } else { Answer::default() }, reply);
        }
        if seen.path == "/token"
            && let Some(issuer) = &*self.issuer.lock()
        {
            let reply = self.scripts.next(&seen.method, &seen.path);
            return (issuer.answer(seen), reply.unwrap_or_default());
        }
        if let Some(challenge) = self.auth.lock().challenge(seen) {
            return (challenge, Reply::normal());
        }
        let reply = self.scripts.next(&seen.method, &seen.path).unwrap_or_default();
        let repositories = self.repositories.lock();
        (registry::answer(seen, &repositories, reply.ignores_range), reply)
    }
}
