// Lightweight viewers for the benchmarks: N receivers of H.264 in one process, without a decoder.
//
// usage: viewers -n N -url http://127.0.0.1:PORT/offer | -janus http://127.0.0.1:PORT/janus
// Prints READY when all viewers receive packets. For each line on standard input, prints {"frames", "viewers",
// "silent"} since READY or the previous line, as JSON. Ends at the end of standard input.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v3"
)

var (
	count = flag.Int("n", 1, "viewers")
	url   = flag.String("url", "", "URL to post an offer to, as {sdp, type}")
	janus = flag.String("janus", "", "URL of a Janus with streaming mountpoint 1")
)

type viewer struct{ packets, frames uint64 }

func call(method, to string, body any) map[string]any {
	var encoded bytes.Buffer
	if body != nil {
		json.NewEncoder(&encoded).Encode(body)
	}
	request, _ := http.NewRequest(method, to, &encoded)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	var answer map[string]any
	if err := json.Unmarshal(text, &answer); err != nil {
		log.Fatalf("%s: %s", to, text)
	}
	return answer
}

func (v *viewer) connection() *webrtc.PeerConnection {
	media := &webrtc.MediaEngine{}
	feedback := []webrtc.RTCPFeedback{{Type: "nack"}, {Type: "nack", Parameter: "pli"}}
	codec := webrtc.RTPCodecCapability{
		MimeType: "video/H264", ClockRate: 90000, RTCPFeedback: feedback,
		SDPFmtpLine: "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
	}
	kind := webrtc.RTPCodecTypeVideo
	if err := media.RegisterCodec(webrtc.RTPCodecParameters{RTPCodecCapability: codec, PayloadType: 102}, kind); err != nil {
		log.Fatal(err)
	}
	for _, uri := range []string{
		"urn:ietf:params:rtp-hdrext:sdes:mid", "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
	} {
		media.RegisterHeaderExtension(webrtc.RTPHeaderExtensionCapability{URI: uri}, kind)
	}
	api := webrtc.NewAPI(webrtc.WithMediaEngine(media), webrtc.WithInterceptorRegistry(&interceptor.Registry{}))
	pc, err := api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		log.Fatal(err)
	}
	pc.OnTrack(func(track *webrtc.TrackRemote, receiver *webrtc.RTPReceiver) {
		pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: uint32(track.SSRC())}})
		go func() {
			for buffer := make([]byte, 1500); ; {
				if _, _, err := receiver.Read(buffer); err != nil {
					return
				}
			}
		}()
		buffer := make([]byte, 2000)
		for {
			size, _, err := track.Read(buffer)
			if err != nil {
				return
			}
			var packet rtp.Packet
			if packet.Unmarshal(buffer[:size]) != nil {
				continue
			}
			atomic.AddUint64(&v.packets, 1)
			if packet.Marker {
				atomic.AddUint64(&v.frames, 1)
			}
		}
	})
	return pc
}

func gathered(pc *webrtc.PeerConnection, description webrtc.SessionDescription) string {
	done := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(description); err != nil {
		log.Fatal(err)
	}
	<-done
	return pc.LocalDescription().SDP
}

func (v *viewer) watch() {
	pc := v.connection()
	if _, err := pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo, webrtc.RTPTransceiverInit{
		Direction: webrtc.RTPTransceiverDirectionRecvonly,
	}); err != nil {
		log.Fatal(err)
	}
	offer, err := pc.CreateOffer(nil)
	if err != nil {
		log.Fatal(err)
	}
	answer := call("POST", *url, map[string]string{"sdp": gathered(pc, offer), "type": "offer"})
	sdp, _ := answer["sdp"].(string)
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: sdp}); err != nil {
		log.Fatal(err, answer)
	}
}

func transaction(fields map[string]any) map[string]any {
	fields["transaction"] = fmt.Sprint(time.Now().UnixNano())
	return fields
}

func (v *viewer) watchJanus() {
	pc := v.connection()
	number := func(answer map[string]any) string {
		return fmt.Sprintf("%.0f", answer["data"].(map[string]any)["id"].(float64))
	}
	session := *janus + "/" + number(call("POST", *janus, transaction(map[string]any{"janus": "create"})))
	attach := transaction(map[string]any{"janus": "attach", "plugin": "janus.plugin.streaming"})
	handle := session + "/" + number(call("POST", session, attach))
	body := map[string]any{"request": "watch", "id": 1}
	call("POST", handle, transaction(map[string]any{"janus": "message", "body": body}))
	for {
		event := call("GET", session, nil)
		offer, found := event["jsep"].(map[string]any)
		if !found {
			continue
		}
		sdp := webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: offer["sdp"].(string)}
		if err := pc.SetRemoteDescription(sdp); err != nil {
			log.Fatal(err)
		}
		answer, err := pc.CreateAnswer(nil)
		if err != nil {
			log.Fatal(err)
		}
		jsep := map[string]string{"type": "answer", "sdp": gathered(pc, answer)}
		started := map[string]any{"janus": "message", "body": map[string]any{"request": "start"}, "jsep": jsep}
		call("POST", handle, transaction(started))
		break
	}
	go func() {
		for {
			call("GET", session, nil) // without polling, Janus closes the session
		}
	}()
}

func main() {
	flag.Parse()
	viewers := make([]*viewer, *count)
	var all sync.WaitGroup
	for i := range viewers {
		viewers[i] = &viewer{}
		all.Add(1)
		go func(v *viewer) {
			defer all.Done()
			if *janus != "" {
				v.watchJanus()
			} else {
				v.watch()
			}
		}(viewers[i])
		time.Sleep(30 * time.Millisecond)
	}
	all.Wait()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		silent := 0
		for _, v := range viewers {
			if atomic.LoadUint64(&v.packets) == 0 {
				silent++
			}
		}
		if silent == 0 {
			break
		}
	}
	fmt.Println("READY")
	before := make([]uint64, *count)
	for i, v := range viewers {
		before[i] = atomic.LoadUint64(&v.frames)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var frames, silent uint64
		for i, v := range viewers {
			now := atomic.LoadUint64(&v.frames)
			frames += now - before[i]
			if now == before[i] {
				silent++
			}
			before[i] = now
		}
		json.NewEncoder(os.Stdout).Encode(map[string]any{"frames": frames, "viewers": *count, "silent": silent})
	}
}
