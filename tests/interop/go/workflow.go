package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"io"
	"net/http"
	"os"

	"github.com/dtm-labs/client/dtmcli"
	"github.com/dtm-labs/client/workflow"
	"google.golang.org/grpc"
)

const workflowName = "interop"

func registerWorkflow() {
	grpcHost = "127.0.0.1:" + os.Getenv("GRPC_PORT")
	grpcServer = grpc.NewServer()
	// Before it serves; later calls only tell the client which coordinator is meant.
	workflow.InitGrpc("", grpcHost, grpcServer)
	if err := workflow.Register2(workflowName, interopWorkflow); err != nil {
		panic(err)
	}
}

func runWorkflow(t *task) error {
	if t.Protocol == "grpc" {
		workflow.InitGrpc(t.Dtm, grpcHost, grpc.NewServer())
	} else {
		workflow.InitHTTP(t.Dtm, self+"/workflow")
	}
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	result, err := workflow.ExecuteCtx(context.Background(), workflowName, t.Gid, data)
	t.result = string(result)
	return err
}

// One branch after another, each with a rollback of its own.
func interopWorkflow(wf *workflow.Workflow, data []byte) ([]byte, error) {
	t := &task{}
	if err := json.Unmarshal(data, t); err != nil {
		return nil, err
	}
	for i := range t.Branches {
		if err := step(wf, &t.Branches[i]); err != nil {
			return nil, err
		}
	}
	return []byte("all done"), nil
}

func step(wf *workflow.Workflow, b *branch) error {
	o := b.Body
	switch o.Kind {
	case "local":
		_, err := wf.NewBranch().OnRollback(func(barrier *dtmcli.BranchBarrier) error {
			return record(barrier, "undo", o)
		}).Do(func(barrier *dtmcli.BranchBarrier) ([]byte, error) {
			return []byte(o.Account), mine.carryOut(&call{barrier: barrier}, o)
		})
		return err
	case "xa":
		_, err := wf.NewBranch().DoXa(conf, func(db *sql.DB) ([]byte, error) {
			if has(o.Refuse, "action") {
				return nil, dtmcli.ErrFailure
			}
			return nil, write(db, wf.Gid, "xa", "action", o.Account, o.Amount, "")
		})
		return err
	case "grpc":
		ctx := wf.NewBranch().OnRollback(func(barrier *dtmcli.BranchBarrier) error {
			return record(barrier, "undo", o)
		}).Context
		return callGrpcStep(ctx, o, workflow.Interceptor)
	default:
		_, err := wf.NewBranch().OnRollback(func(barrier *dtmcli.BranchBarrier) error {
			return record(barrier, "undo", o)
		}).NewRequest().SetBody(o).Post(b.URL)
		return err
	}
}

func record(barrier *dtmcli.BranchBarrier, op string, o *order) error {
	return barrier.CallWithDB(mine.db, func(tx *sql.Tx) error {
		return write(tx, barrier.Gid, barrier.BranchID, op, o.Account, o.Amount, "")
	})
}

// Goes on with a workflow that the coordinator asks for.
func handleWorkflow(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err == nil {
		query := r.URL.Query()
		_, err = workflow.ExecuteCtx(r.Context(), query.Get("op"), query.Get("gid"), data)
	}
	status, result := dtmcli.Result2HttpJSON(err)
	answer(w, status, result)
}
