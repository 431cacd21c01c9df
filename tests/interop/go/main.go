// Participant and initiator over DTM's own Go client; what it is told to do is described in ../clients.py.
package main

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"sync"

	"github.com/dtm-labs/client/dtmcli"
	"github.com/dtm-labs/client/dtmcli/dtmimp"
	"github.com/go-resty/resty/v2"
	_ "github.com/go-sql-driver/mysql"
)

type branch struct {
	URL  string `json:"url"`
	Body *order `json:"body"`
}

type order struct {
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
}

func run(t *task) error {
	switch t.Pattern {
	case "saga":
		return runSaga(t)
	case "tcc":
		return runTcc(t)
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

func (b *books) carryOut(r *http.Request, o *order) error {
	barrier, err := dtmcli.BarrierFromQuery(r.URL.Query())
	if err != nil {
		return err
	}
	if has(o.Never, barrier.Op) || has(o.Later, barrier.Op) && b.isFirst("later", barrier) {
		return dtmcli.ErrOngoing
	}
	if has(o.Refuse, barrier.Op) {
		return fmt.Errorf("%s refuses. %w", o.Account, dtmcli.ErrFailure)
	}
	if o.Nested != nil && barrier.Op == "try" {
		tcc, err := dtmcli.TccFromQuery(r.URL.Query())
		if err != nil {
			return err
		}
		if _, err = tcc.CallBranch(o.Nested.Body, o.Nested.URL, o.Nested.URL, o.Nested.URL); err != nil {
			return err
		}
	}
	err = barrier.CallWithDB(b.db, func(tx *sql.Tx) error {
		_, err := tx.Exec("insert into books(gid, branch_id, op, account, amount, note) values(?,?,?,?,?,?)",
			barrier.Gid, barrier.BranchID, barrier.Op, o.Account, o.Amount, r.Header.Get("Interop-Note"))
		return err
	})
	if err == nil && has(o.Lose, barrier.Op) && b.isFirst("lose", barrier) {
		return fmt.Errorf("the answer of %s is lost", barrier.Op)
	}
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

func main() {
	db, err := sql.Open("mysql", fmt.Sprintf("%s:%s@tcp(%s:%s)/%s", os.Getenv("BOOKS_USER"), os.Getenv("BOOKS_PASSWORD"),
		os.Getenv("BOOKS_HOST"), os.Getenv("BOOKS_PORT"), os.Getenv("BOOKS_DB")))
	if err != nil {
		log.Fatal(err)
	}
	b := &books{db: db, seen: map[string]bool{}}
	http.HandleFunc("/branch", func(w http.ResponseWriter, r *http.Request) {
		o := &order{}
		err := json.NewDecoder(r.Body).Decode(o)
		if err == nil {
			err = b.carryOut(r, o)
		}
		status, result := dtmcli.Result2HttpJSON(err)
		answer(w, status, result)
	})
	http.HandleFunc("/run", func(w http.ResponseWriter, r *http.Request) {
		t := &task{}
		err := json.NewDecoder(r.Body).Decode(t)
		if err == nil {
			if t.Gid == "" {
				t.Gid = dtmcli.MustGenGid(t.Dtm)
			}
			err = run(t)
		}
		text := ""
		if err != nil {
			text = err.Error()
		}
		answer(w, http.StatusOK, map[string]string{"gid": t.Gid, "error": text})
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}

func answer(w http.ResponseWriter, status int, body interface{}) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
