package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"strings"

	"github.com/dtm-labs/client/dtmgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The service's one message is an order as JSON text.
const (
	branchMethod        = "/interop.Branch/Do"
	queryPreparedMethod = "/interop.Branch/QueryPrepared"
)

var (
	grpcHost   string
	grpcServer *grpc.Server
)

func message(o *order) *wrapperspb.StringValue {
	text, err := json.Marshal(o)
	if err != nil {
		log.Fatal(err)
	}
	return wrapperspb.String(string(text))
}

func runOverGrpc(t *task) error {
	switch t.Pattern {
	case "saga":
		saga := dtmgrpc.NewSagaGrpc(t.Dtm, t.Gid)
		for _, b := range t.Branches {
			saga.Add(b.URL, b.URL, message(b.Body))
		}
		saga.TransOptions = options(t)
		return saga.Submit()
	case "tcc":
		custom := func(tcc *dtmgrpc.TccGrpc) { tcc.TransOptions = options(t) }
		return dtmgrpc.TccGlobalTransaction2(t.Dtm, t.Gid, custom, func(tcc *dtmgrpc.TccGrpc) error {
			for _, b := range t.Branches {
				if err := tcc.CallBranch(message(b.Body), b.URL, b.URL, b.URL, &emptypb.Empty{}); err != nil {
					return err
				}
			}
			return nil
		})
	case "xa":
		custom := func(xa *dtmgrpc.XaGrpc) { xa.TransOptions = options(t) }
		return dtmgrpc.XaGlobalTransaction2(t.Dtm, t.Gid, custom, func(xa *dtmgrpc.XaGrpc) error {
			for _, b := range t.Branches {
				if err := xa.CallBranch(message(b.Body), b.URL, &emptypb.Empty{}); err != nil {
					return err
				}
			}
			return nil
		})
	case "msg":
		msg := dtmgrpc.NewMsgGrpc(t.Dtm, t.Gid)
		for _, b := range t.Branches {
			if t.Topic != "" {
				msg.AddTopic(t.Topic, message(b.Body))
			} else {
				msg.Add(b.URL, message(b.Body))
			}
		}
		msg.TransOptions = options(t)
		question := grpcHost + queryPreparedMethod
		if strings.HasPrefix(t.Local, "vanish") {
			if err := msg.Prepare(question); err != nil {
				return err
			}
			return vanish(t)
		}
		return msg.DoAndSubmitDB(question, mine.db, func(tx *sql.Tx) error { return local(tx, t) })
	}
	return fmt.Errorf("no pattern %q over gRPC here", t.Pattern)
}

func grpcCallOf(ctx context.Context) (*call, error) {
	barrier, err := dtmgrpc.BarrierFromGrpc(ctx)
	if err != nil {
		return nil, err
	}
	note := ""
	if found, ok := metadata.FromIncomingContext(ctx); ok {
		for _, value := range found.Get("interop-note") {
			note = value
		}
	}
	return &call{
		barrier: barrier,
		note:    note,
		nest: func(inner *branch) error {
			tcc, err := dtmgrpc.TccFromGrpc(ctx)
			if err != nil {
				return err
			}
			return tcc.CallBranch(message(inner.Body), inner.URL, inner.URL, inner.URL, &emptypb.Empty{})
		},
		xa: func(work func(db *sql.DB) error) error {
			return dtmgrpc.XaLocalTransaction(ctx, conf, func(db *sql.DB, _ *dtmgrpc.XaGrpc) error { return work(db) })
		},
	}, nil
}

func doBranch(ctx context.Context, in *wrapperspb.StringValue) error {
	c, err := grpcCallOf(ctx)
	if err != nil {
		return err
	}
	o := &order{}
	// The second phase of an XA branch brings no order.
	if in.GetValue() != "" {
		if err = json.Unmarshal([]byte(in.GetValue()), o); err != nil {
			return err
		}
	}
	return mine.carryOut(c, o)
}

func doQueryPrepared(ctx context.Context, _ *wrapperspb.StringValue) error {
	barrier, err := dtmgrpc.BarrierFromGrpc(ctx)
	if err != nil {
		return err
	}
	return barrier.QueryPrepared(mine.db)
}

func unary(do func(context.Context, *wrapperspb.StringValue) error) func(
	interface{}, context.Context, func(interface{}) error, grpc.UnaryServerInterceptor) (interface{}, error) {
	return func(_ interface{}, ctx context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor) (interface{}, error) {
		in := &wrapperspb.StringValue{}
		if err := decode(in); err != nil {
			return nil, err
		}
		return &emptypb.Empty{}, dtmgrpc.DtmError2GrpcError(do(ctx, in))
	}
}

func serveGrpc() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("GRPC_PORT"))
	if err != nil {
		log.Fatal(err)
	}
	grpcServer.RegisterService(&grpc.ServiceDesc{
		ServiceName: "interop.Branch",
		HandlerType: (*interface{})(nil),
		Methods: []grpc.MethodDesc{
			{MethodName: "Do", Handler: unary(doBranch)},
			{MethodName: "QueryPrepared", Handler: unary(doQueryPrepared)},
		},
	}, struct{}{})
	log.Fatal(grpcServer.Serve(listener))
}

// Calls a branch as a step of a workflow: the client's interceptor keeps its result.
func callGrpcStep(ctx context.Context, o *order, interceptor grpc.UnaryClientInterceptor) error {
	connection, err := grpc.Dial(grpcHost, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(interceptor))
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	return dtmgrpc.GrpcError2DtmError(connection.Invoke(ctx, branchMethod, message(o), &emptypb.Empty{}))
}
