// Participant and initiator over DTM's own Go client; what it is told to do is described in ../clients.py.
package main

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/dtm-labs/client/dtmcli"
	"github.com/dtm-labs/client/dtmcli/dtmimp"
	"github.com/dtm-labs/client/dtmgrpc"
	"github.com/go-resty/resty/v2"
	_ "github.com/go-sql-driver/mysql"
)

type branch struct {
	URL  string `json:"url"`
	Body *order `json:"body"`
}

type order struct {
	// Of a workflow's step: "http" (the default), "grpc", "local" or "xa".
	Kind    string   `json:"kind,omitempty"`
	Account string   `json:"account"`
	Amount  int      `json:"amount"`
	Refuse  []string `json:"refuse,omitempty"`
	Later   []string `json:"later,omitempty"`
	Never   []string `json:"never,omitempty"`
	Lose    []string `json:"lose,omitempty"`
	Nested  *branch  `json:"nested,omitempty"`
	Dtm     string   `json:"dtm,omitempty"`
}

type task struct {
	Pattern       string            `json:"pattern"`
	Gid           string            `json:"gid"`
	Dtm           string            `json:"dtm"`
	Protocol      string            `json:"protocol"`
	Branches      []branch          `json:"branches"`
	Concurrent    bool              `json:"concurrent"`
	Orders        map[int][]int     `json:"orders"`
	WaitResult    bool              `json:"wait_result"`
	TimeoutToFail int64             `json:"timeout_to_fail"`
	BranchHeaders map[string]string `json:"branch_headers"`
	// Of a message: how its local transaction goes; "" commits, "refuse", or "vanish" before the submit, "vanish early" before the local one.
	Local string `json:"local"`
	Topic string `json:"topic"`
	Delay uint64 `json:"delay"`

	// What a workflow returned.
	result string
}

func run(t *task) error {
	if t.Pattern == "workflow" {
		return runWorkflow(t)
	}
	if t.Protocol == "grpc" {
		return runOverGrpc(t)
	}
	switch t.Pattern {
	case "saga":
		return runSaga(t)
	case "tcc":
		return runTcc(t)
	case "xa":
		return runXa(t)
	case "msg":
		return runMsg(t)
	}
	return fmt.Errorf("no pattern %q here", t.Pattern)
}

func runSaga(t *task) error {
	saga := dtmcli.NewSaga(t.Dtm, t.Gid)
	for _, b := range t.Branches {
		saga.Add(b.URL, b.URL, b.Body)
	}
	saga.TransOptions = options(t)
	saga.Protocol = t.Protocol
	if t.Concurrent {
		saga.SetConcurrent()
	}
	for step, before := range t.Orders {
		saga.AddBranchOrder(step, before)
	}
	return saga.Submit()
}

func runTcc(t *task) error {
	custom := func(tcc *dtmcli.Tcc) {
		tcc.TransOptions = options(t)
		tcc.Protocol = t.Protocol
	}
	return dtmcli.TccGlobalTransaction2(t.Dtm, t.Gid, custom, func(tcc *dtmcli.Tcc) (*resty.Response, error) {
		for _, b := range t.Branches {
			if answer, err := tcc.CallBranch(b.Body, b.URL, b.URL, b.URL); err != nil {
				return answer, err
			}
		}
		return nil, nil
	})
}

func runXa(t *task) error {
	custom := func(xa *dtmcli.Xa) { xa.TransOptions = options(t) }
	return dtmcli.XaGlobalTransaction2(t.Dtm, t.Gid, custom, func(xa *dtmcli.Xa) (*resty.Response, error) {
		for _, b := range t.Branches {
			if answer, err := xa.CallBranch(b.Body, b.URL); err != nil {
				return answer, err
			}
		}
		return nil, nil
	})
}

func runMsg(t *task) error {
	msg := dtmcli.NewMsg(t.Dtm, t.Gid)
	for _, b := range t.Branches {
		if t.Topic != "" {
			msg.AddTopic(t.Topic, b.Body)
		} else {
			msg.Add(b.URL, b.Body)
		}
	}
	msg.TransOptions = options(t)
	msg.SetDelay(t.Delay)
	question := self + "/query-prepared"
	if strings.HasPrefix(t.Local, "vanish") {
		if err := msg.Prepare(question); err != nil {
			return err
		}
		return vanish(t)
	}
	return msg.DoAndSubmitDB(question, mine.db, func(tx *sql.Tx) error { return local(tx, t) })
}

// The local transaction of a message.
func local(tx *sql.Tx, t *task) error {
	if t.Local == "refuse" {
		return fmt.Errorf("the local transaction refuses. %w", dtmcli.ErrFailure)
	}
	return write(tx, t.Gid, "00", "msg", "local", 0, "")
}

// Commits the local transaction as DoAndSubmitDB does, if it comes so far, and ends before the submit.
func vanish(t *task) error {
	if t.Local == "vanish early" {
		return nil
	}
	barrier, err := dtmcli.BarrierFrom("msg", t.Gid, "00", "msg")
	if err != nil {
		return err
	}
	return barrier.CallWithDB(mine.db, func(tx *sql.Tx) error { return local(tx, t) })
}

func options(t *task) dtmimp.TransOptions {
	return dtmimp.TransOptions{
		WaitResult:    t.WaitResult,
		TimeoutToFail: t.TimeoutToFail,
		BranchHeaders: t.BranchHeaders,
	}
}

type books struct {
	db   *sql.DB
	mu   sync.Mutex
	seen map[string]bool
}

// What a call brings, whatever protocol it came over.
type call struct {
	barrier *dtmcli.BranchBarrier
	note    string
	// Calls the try of a branch within this one.
	nest func(*branch) error
	// Runs a function as a local XA transaction, or ends the prepared one.
	xa func(work func(db *sql.DB) error) error
}

func (b *books) carryOut(c *call, o *order) error {
	barrier := c.barrier
	if barrier.TransType == "xa" {
		return b.carryOutXa(c, o)
	}
	if has(o.Never, barrier.Op) || has(o.Later, barrier.Op) && b.isFirst("later", barrier) {
		return dtmcli.ErrOngoing
	}
	if has(o.Refuse, barrier.Op) {
		return fmt.Errorf("%s refuses. %w", o.Account, dtmcli.ErrFailure)
	}
	if o.Nested != nil && barrier.Op == "try" {
		if err := c.nest(o.Nested); err != nil {
			return err
		}
	}
	err := barrier.CallWithDB(b.db, func(tx *sql.Tx) error {
		return write(tx, barrier.Gid, barrier.BranchID, barrier.Op, o.Account, o.Amount, c.note)
	})
	if err == nil && has(o.Lose, barrier.Op) && b.isFirst("lose", barrier) {
		return fmt.Errorf("the answer of %s is lost", barrier.Op)
	}
	return err
}

func (b *books) carryOutXa(c *call, o *order) error {
	barrier := c.barrier
	if has(o.Later, barrier.Op) && b.isFirst("later", barrier) {
		return dtmcli.ErrOngoing
	}
	err := c.xa(func(db *sql.DB) error {
		if has(o.Refuse, barrier.Op) {
			return fmt.Errorf("%s refuses. %w", o.Account, dtmcli.ErrFailure)
		}
		return write(db, barrier.Gid, barrier.BranchID, barrier.Op, o.Account, o.Amount, c.note)
	})
	if err == nil && has(o.Lose, barrier.Op) && b.isFirst("lose", barrier) {
		return fmt.Errorf("the answer of %s is lost", barrier.Op)
	}
	return err
}

type executor interface {
	Exec(query string, args ...interface{}) (sql.Result, error)
}

func write(to executor, gid, branchID, op, account string, amount int, note string) error {
	_, err := to.Exec("insert into books(gid, branch_id, op, account, amount, note) values(?,?,?,?,?,?)",
		gid, branchID, op, account, amount, note)
	return err
}

func (b *books) isFirst(what string, barrier *dtmcli.BranchBarrier) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := what + "/" + barrier.Gid + "/" + barrier.BranchID + "/" + barrier.Op
	known := b.seen[key]
	b.seen[key] = true
	return !known
}

func has(ops []string, op string) bool {
	for _, each := range ops {
		if each == op {
			return true
		}
	}
	return false
}

var (
	mine *books
	conf dtmcli.DBConf
	self string
)

func callOf(r *http.Request) (*call, error) {
	query := r.URL.Query()
	barrier, err := dtmcli.BarrierFromQuery(query)
	if err != nil {
		return nil, err
	}
	return &call{
		barrier: barrier,
		note:    r.Header.Get("Interop-Note"),
		nest: func(inner *branch) error {
			tcc, err := dtmcli.TccFromQuery(query)
			if err != nil {
				return err
			}
			_, err = tcc.CallBranch(inner.Body, inner.URL, inner.URL, inner.URL)
			return err
		},
		xa: func(work func(db *sql.DB) error) error {
			return dtmcli.XaLocalTransaction(query, conf, func(db *sql.DB, _ *dtmcli.Xa) error { return work(db) })
		},
	}, nil
}

func handleBranch(w http.ResponseWriter, r *http.Request) {
	o := &order{}
	c, err := callOf(r)
	// The second phase of an XA branch has no body.
	if err == nil && r.ContentLength != 0 {
		err = json.NewDecoder(r.Body).Decode(o)
	}
	if err == nil {
		err = mine.carryOut(c, o)
	}
	status, result := dtmcli.Result2HttpJSON(err)
	answer(w, status, result)
}

func handleQueryPrepared(w http.ResponseWriter, r *http.Request) {
	barrier, err := dtmcli.BarrierFromQuery(r.URL.Query())
	if err == nil {
		err = barrier.QueryPrepared(mine.db)
	}
	status, result := dtmcli.Result2HttpJSON(err)
	answer(w, status, result)
}

func handleRun(w http.ResponseWriter, r *http.Request) {
	t := &task{}
	err := json.NewDecoder(r.Body).Decode(t)
	if err == nil {
		if t.Gid == "" {
			t.Gid = newGid(t)
		}
		err = run(t)
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	answer(w, http.StatusOK, map[string]string{"gid": t.Gid, "error": text, "result": t.result})
}

func newGid(t *task) string {
	if t.Protocol == "grpc" {
		return dtmgrpc.MustGenGid(t.Dtm)
	}
	return dtmcli.MustGenGid(t.Dtm)
}

func main() {
	port, err := strconv.ParseInt(os.Getenv("BOOKS_PORT"), 10, 64)
	if err != nil {
		log.Fatal(err)
	}
	conf = dtmcli.DBConf{Driver: "mysql", Host: os.Getenv("BOOKS_HOST"), Port: port, User: os.Getenv("BOOKS_USER"),
		Password: os.Getenv("BOOKS_PASSWORD"), Db: os.Getenv("BOOKS_DB")}
	db, err := sql.Open("mysql", fmt.Sprintf("%s:%s@tcp(%s:%d)/%s", conf.User, conf.Password, conf.Host, conf.Port, conf.Db))
	if err != nil {
		log.Fatal(err)
	}
	mine = &books{db: db, seen: map[string]bool{}}
	self = "http://127.0.0.1:" + os.Getenv("PORT")
	registerWorkflow()
	go serveGrpc()
	http.HandleFunc("/branch", handleBranch)
	http.HandleFunc("/query-prepared", handleQueryPrepared)
	http.HandleFunc("/workflow", handleWorkflow)
	http.HandleFunc("/run", handleRun)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}

func answer(w http.ResponseWriter, status int, body interface{}) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
